"""Requests are reported to OpenTelemetry, where an application uses it."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    Engine,
    Request,
    Settings,
    Simulation,
    plain,
    telemetry,
)
from ralmspec_plugins.engine.simulation import Latencies
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from tests.speculators.encoded_steps import Far, Numbered, both

WORDS = "fox whale cat fox whale cat"
STORE = WordRetriever(["red fox", "blue whale", "grey cat"])


class BrokenRetriever(WordRetriever):
    """Raises in each search."""

    def search_wide(self, queries: Any, width: int) -> Any:
        raise InputError("secret")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is reported while a test runs; a provider can be set once in a process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """The metrics of a test."""
    found = InMemoryMetricReader()
    provider = MeterProvider([found])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    telemetry._instruments.cache_clear()
    yield found
    telemetry._instruments.cache_clear()
    provider.shutdown()


def test_a_request_is_a_span_with_its_work_below_it(spans: InMemorySpanExporter) -> None:
    """One for each span of the timeline, within the request's time, below the caller's span."""
    with (
        trace.get_tracer("app").start_as_current_span("question") as question,
        Engine(EchoWorkload(), STORE) as engine,
    ):
        answer = engine.run(WORDS)
    *work, request, _ = spans.get_finished_spans()

    assert answer == plain(EchoWorkload(), STORE, WORDS)
    assert (request.name, request.parent) == ("ralmspec.request", question.get_span_context())
    assert request.attributes["ralmspec.steps"] == answer.stats.segments == 6
    assert request.attributes["ralmspec.guesses.accepted"] == answer.stats.accepted > 0
    assert "ralmspec.limited_by" not in request.attributes
    kinds = Counter(telemetry.NAMES[span.kind] for span in answer.stats.timeline)
    assert kinds["ralmspec.generation"] >= 6
    assert kinds == Counter(span.name for span in work)
    assert {span.parent.span_id for span in work} == {request.context.span_id}
    assert all(request.start_time <= span.start_time <= span.end_time for span in work)


def test_what_was_discarded_is_reported(
    spans: InMemorySpanExporter, reader: InMemoryMetricReader
) -> None:
    """Tokens and encodings, the bound that ended speculation, and replaced guesses."""

    def numbered(prompt: str) -> Any:
        limited = Settings(
            schedule=Continuous(lanes=8), speculators=both(0.2, 1.0), max_wasted_tokens=3
        )
        with Engine(Numbered(), Far(), limited) as engine:
            return engine.run(prompt).stats

    found = [numbered("") for _ in range(3)]
    requests = [
        span.attributes for span in spans.get_finished_spans() if span.name == "ralmspec.request"
    ]
    counters = {
        metric.name: metric.data.data_points[0].value
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        if metric.name.endswith("s.discarded")
    }

    assert found[0].wasted_tokens > 0
    assert found[0].limited_by == "max_wasted_tokens"
    for stats, attributes in zip(found, requests, strict=True):
        assert attributes["ralmspec.guesses.replaced"] == stats.replaced
        assert attributes["ralmspec.tokens.discarded"] == stats.wasted_tokens
        assert attributes["ralmspec.encodings.discarded"] == stats.wasted_encodings
        assert attributes.get("ralmspec.limited_by") == stats.limited_by
    assert counters == {
        "ralmspec.tokens.discarded": sum(stats.wasted_tokens for stats in found),
        "ralmspec.encodings.discarded": sum(stats.wasted_encodings for stats in found),
    }


async def test_an_asynchronous_request_is_reported_once(spans: InMemorySpanExporter) -> None:
    """Also one that is streamed."""
    async with AsyncEngine(EchoWorkload(), STORE) as engine:
        stream = engine.events(WORDS)
        events = [event async for event in stream]
        answer = await engine.run(WORDS)
        assert await anext(stream, None) is None
        assert await anext(stream, None) is None

    assert events
    assert stream.answer == answer
    names = Counter(span.name for span in spans.get_finished_spans())
    assert names["ralmspec.request"] == 2


def test_an_error_is_reported_without_its_message(spans: InMemorySpanExporter) -> None:
    """A message may hold a query."""
    with (
        Engine(EchoWorkload(), BrokenRetriever(["fox"])) as engine,
        pytest.raises(InputError, match="secret"),
    ):
        engine.run(WORDS)
    [request] = spans.get_finished_spans()

    assert not request.status.is_ok
    assert request.attributes == {"error.type": "InputError"}
    assert "secret" not in request.to_json()


def test_texts_are_not_reported(spans: InMemorySpanExporter) -> None:
    """Neither of the prompt, nor of passages or answers."""
    with Engine(EchoWorkload(), STORE) as engine:
        answer = engine.run(Request(prompt=WORDS))
    written = "".join(span.to_json() for span in spans.get_finished_spans())

    assert answer.text
    assert "ralmspec.retrieval" in written
    assert not [word for word in ("fox", "whale", "cat", "blue", "grey") if word in written]


def test_metrics_count_guesses_and_segments(reader: InMemoryMetricReader) -> None:
    """As the statistics of all requests do."""
    with Engine(EchoWorkload(), STORE) as engine:
        answers = [engine.run(WORDS), engine.run(WORDS)]
    found: dict[str, dict[str, Any]] = {}
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            outcome = point.attributes.get("ralmspec.outcome", "")
            value = getattr(point, "value", getattr(point, "count", None))
            found.setdefault(metric.name, {})[outcome] = value

    assert found["ralmspec.requests"] == {"": 2}
    assert found["ralmspec.segments"]["kept"] == 12
    accepted = sum(answer.stats.accepted for answer in answers)
    assert found["ralmspec.guesses"]["accepted"] == accepted > 0
    assert found["ralmspec.request.duration"] == {"": 2}
    searches = sum(answer.stats.searches for answer in answers)
    assert sum(found["ralmspec.retrieval.duration"].values()) == searches


def test_a_failing_exporter_does_not_fail_the_request(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is the plain loop's."""

    def broken(scope: str) -> Any:
        raise RuntimeError("no exporter")

    monkeypatch.setattr(trace, "get_tracer", broken)
    with Engine(EchoWorkload(), STORE) as engine:
        answer = engine.run(WORDS)

    assert answer == plain(EchoWorkload(), STORE, WORDS)
    assert answer.text


def test_virtual_time_is_not_reported(spans: InMemorySpanExporter) -> None:
    """Its spans would lie at times that never were."""
    answer = Simulation(EchoWorkload(), STORE, Latencies()).run(WORDS)

    assert answer.text
    assert not spans.get_finished_spans()


def test_nothing_is_imported_for_it() -> None:
    """An application without OpenTelemetry does not load it."""
    program = """
import sys
from ralmspec_plugins import Engine
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
with Engine(EchoWorkload(), WordRetriever(["red fox"])) as engine:
    assert engine.run("fox").text == "red fox"
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("done\n", "")
