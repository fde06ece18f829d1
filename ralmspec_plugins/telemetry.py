"""Spans and metrics of requests, for OpenTelemetry (extra `otel`).

Only the API is used, and only if the application has imported it: which SDK receives the spans, and
where they are exported, is the application's setting. Spans hold numbers, never texts.
"""

import logging
import sys
import time
from functools import lru_cache
from typing import Any, Final, TypeAlias

from ralmspec_plugins.types import Answer, Outcome, Span, Stats

SCOPE: Final = "ralmspec_plugins"
NAMES: Final = {  # of spans, by the kind of work
    "start": "ralmspec.start",
    "ask": "ralmspec.query",
    "encode": "ralmspec.encode",
    "guess": "ralmspec.guess",
    "search": "ralmspec.retrieval",
    "extend": "ralmspec.generation",
}
_NS: Final = 1_000_000_000  # nanoseconds in a second
_log = logging.getLogger(__name__)

Value: TypeAlias = str | bool | int | float


def record(outcome: Answer | Exception, began_ns: int) -> None:
    """Report a request that has ended; without OpenTelemetry nothing is done.

    Args:
        outcome: its answer, or the error that it raises.
        began_ns: when it was made, by `time.time_ns`; an answer knows its time itself.
    """
    if "opentelemetry" not in sys.modules:
        return  # then the application has set up neither a tracer nor a meter
    try:
        _record_span(outcome, began_ns)
        _record_metrics(outcome)
    except Exception:  # noqa: BLE001 an exporter's failure is not the request's
        _log.debug("a request could not be reported to OpenTelemetry", exc_info=True)


def request_attributes(stats: Stats) -> dict[str, Value]:
    """Return the attributes of a request's span: the counts of its statistics.

    >>> attributes = request_attributes(Stats(guesses=4, accepted=3))
    >>> attributes["ralmspec.guesses.accepted"], attributes["ralmspec.guesses.rejected"]
    (3, 1)
    """
    attributes: dict[str, Value] = {
        "ralmspec.steps": stats.segments,
        "ralmspec.searches": stats.searches,
        "ralmspec.queries": stats.queries,
        "ralmspec.remembered": stats.remembered,
        "ralmspec.guesses.accepted": stats.accepted,
        "ralmspec.guesses.rejected": stats.guesses - stats.accepted,
        "ralmspec.guesses.replaced": stats.replaced,
        "ralmspec.segments.discarded": stats.wasted_segments,
        "ralmspec.tokens.discarded": stats.wasted_tokens,
        "ralmspec.encodings.discarded": stats.wasted_encodings,
        "ralmspec.retries": stats.retries,
        "ralmspec.search_s": stats.search_s,
        "ralmspec.write_s": stats.write_s,
        "ralmspec.overlap_s": stats.overlap_s,
    }
    if stats.unguessed is not None:
        attributes["ralmspec.unguessed"] = stats.unguessed
    if stats.limited_by is not None:
        attributes["ralmspec.limited_by"] = stats.limited_by
    return attributes


def work_attributes(span: Span) -> dict[str, Value]:
    """Return the attributes of the span of one piece of work."""
    attributes: dict[str, Value] = {"ralmspec.outcome": span.outcome.value}
    if span.kind == "search":
        attributes["ralmspec.queries"] = span.queries
    if span.kind == "extend":
        attributes["ralmspec.speculative"] = span.ahead
        attributes["ralmspec.passes"] = span.passes
    return attributes


def _record_span(outcome: Answer | Exception, began_ns: int) -> None:
    """Report a request as a span in the caller's context, with a span for each piece of work."""
    from opentelemetry import trace

    tracer = trace.get_tracer(SCOPE)
    ended_ns = time.time_ns()
    if isinstance(outcome, Exception):
        error = {"error.type": type(outcome).__name__}  # its message may hold a query
        failed = tracer.start_span("ralmspec.request", attributes=error, start_time=began_ns)
        failed.set_status(trace.StatusCode.ERROR)
        failed.end(ended_ns)
        return
    stats = outcome.stats
    began_ns = ended_ns - int(stats.wall_s * _NS)
    request = tracer.start_span("ralmspec.request", start_time=began_ns)
    if request.is_recording():
        request.set_attributes(request_attributes(stats))
        context = trace.set_span_in_context(request)
        for work in stats.timeline:
            child = tracer.start_span(
                NAMES.get(work.kind, f"ralmspec.{work.kind}"),
                context=context,
                attributes=work_attributes(work),
                start_time=began_ns + int(work.started_s * _NS),
            )
            if work.outcome is Outcome.FAILED:
                child.set_status(trace.StatusCode.ERROR)
            child.end(began_ns + int(work.ended_s * _NS))
    request.end(ended_ns)


@lru_cache(maxsize=1)
def _instruments() -> dict[str, Any]:
    """Return counters and histograms; they follow the meter provider that is set later."""
    from opentelemetry import metrics

    meter = metrics.get_meter(SCOPE)
    return {
        "requests": meter.create_counter("ralmspec.requests", description="ended requests"),
        "guesses": meter.create_counter("ralmspec.guesses", description="judged guesses"),
        "segments": meter.create_counter("ralmspec.segments", description="started segments"),
        "tokens": meter.create_counter(
            "ralmspec.tokens.discarded", description="tokens that no answer has"
        ),
        "encodings": meter.create_counter(
            "ralmspec.encodings.discarded", description="encodings that no answer used, or repeated"
        ),
        "request": meter.create_histogram("ralmspec.request.duration", unit="s"),
        "search": meter.create_histogram("ralmspec.retrieval.duration", unit="s"),
        "extend": meter.create_histogram("ralmspec.generation.duration", unit="s"),
    }


def _record_metrics(outcome: Answer | Exception) -> None:
    """Add a request to the counters and histograms."""
    instruments = _instruments()
    if isinstance(outcome, Exception):
        instruments["requests"].add(1, {"error.type": type(outcome).__name__})
        return
    stats = outcome.stats
    instruments["requests"].add(1)
    instruments["request"].record(stats.wall_s)
    guesses = instruments["guesses"]
    guesses.add(stats.accepted, {"ralmspec.outcome": "accepted"})
    guesses.add(stats.guesses - stats.accepted, {"ralmspec.outcome": "rejected"})
    segments = instruments["segments"]
    segments.add(stats.segments, {"ralmspec.outcome": "kept"})
    segments.add(stats.wasted_segments, {"ralmspec.outcome": "discarded"})
    instruments["tokens"].add(stats.wasted_tokens)
    instruments["encodings"].add(stats.wasted_encodings)
    for work in stats.timeline:
        if work.kind in ("search", "extend"):
            attributes = {"ralmspec.outcome": work.outcome.value}
            instruments[work.kind].record(work.ended_s - work.started_s, attributes)
