"""Models of benchmarks: drawn ones, and ones that write a given text."""

from typing import Any

import pytest

pytest.importorskip("transformers")

from benchmarks.harness.inputs import LoadedModel, load_model
from ralmspec_plugins import Engine, FixedStride, Request, Settings
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Passage
from ralmspec_plugins.workloads import Interval

TEXT = "the lighthouse keeper counted the ships, and a storm came over the island at night"


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    """A drawn model of one layer."""
    return load_model("random:1x64", [TEXT])


def test_a_drawn_model_is_the_same_each_time(small: LoadedModel) -> None:
    """Weights and vocabulary depend on nothing but the name and the texts."""
    again = load_model("random:1x64", [TEXT])
    pairs = zip(small.model.parameters(), again.model.parameters(), strict=True)

    assert all(bool((one == other).all()) for one, other in pairs)
    assert small.tokenizer.get_vocab() == again.tokenizer.get_vocab()


def test_a_vocabulary_covers_any_text(small: LoadedModel) -> None:
    """Bytes that were not in the texts are pieces too."""
    told = "crêpes cost 25 € 🙂"

    assert told == small.tokenizer.decode(small.tokenizer.encode(told))


def test_a_trace_writes_its_script(small: LoadedModel) -> None:
    """What comes out is the text of the request, token by token, whatever is retrieved."""
    lm = small.writer(trace=True)
    draft = lm.begin(Request(prompt="It was dark, and", max_tokens=8, context=TEXT))
    for passage in ("one", "another"):
        draft = lm.write(draft, [Passage(passage, passage)], 4, Progress())

    wanted = small.tokenizer.decode(small.tokenizer.encode(f" {TEXT}")[:8])
    assert wanted == draft.text


def test_a_trace_does_the_passes_of_writing(small: LoadedModel, monkeypatch: Any) -> None:
    """Passages, prompt and each token but the last go through the model, as when it is free."""
    seen: dict[bool, list[int]] = {True: [], False: []}
    for trace in seen:
        lm: Any = small.writer(trace=trace)
        once = lm._passes._pass

        def counted(
            cache: Any, tokens: Any, keep: int = 1, *, once: Any = once, trace: bool = trace
        ) -> Any:
            seen[trace].append(len(tokens))
            return once(cache, tokens, keep)

        monkeypatch.setattr(lm._passes, "_pass", counted)
        draft = lm.begin(Request(prompt="It was dark", max_tokens=4, context=TEXT))
        lm.write(draft, [Passage("p", "a storm")], 4, Progress())

    assert seen[False] == seen[True]
    assert [1, 1, 1] == seen[True][-3:]


def test_traces_are_answered_speculatively(small: LoadedModel) -> None:
    """A wrong guess is rolled back, and the script is still there when it is written again."""
    words = WordRetriever(sorted(set(TEXT.replace(",", "").split())))
    request = Request(prompt="the ships", max_tokens=12, context=TEXT)
    workload = Interval(small.writer(trace=True), interval=2, query_tokens=4)
    answers = []
    for settings in (Settings(speculate=False), Settings(schedule=FixedStride(), prefetch=1)):
        with Engine(workload, words, settings) as engine:
            answers.append(engine.run(request))

    assert answers[0] == answers[1]
    assert answers[1].stats.wasted_segments > 0


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(prompt="a"), "needs the text"),
        (Request(prompt="a", max_tokens=9, context="b"), "fewer than max_tokens=9"),
    ],
)
def test_a_trace_without_enough_text_is_refused(
    small: LoadedModel, request_: Request, words: str
) -> None:
    """The message says what is missing."""
    with pytest.raises(InputError, match=words):
        small.writer(trace=True).begin(request_)


@pytest.mark.parametrize("name", ["random:0x64", "random:2x100"])
def test_sizes_that_there_cannot_be_are_refused(name: str) -> None:
    """No layers, or a width that does not go into heads."""
    with pytest.raises(ConfigError, match="multiple of 64"):
        load_model(name, [TEXT])


def test_the_demos_model_is_asked_in_its_own_way() -> None:
    """Its prompts are lines."""
    assert "{prompt}\n" == load_model("demo", []).template.prompt
