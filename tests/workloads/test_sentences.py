"""A sentence a step: what is asked, what is written, where it ends."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.text import sentence_end
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Hit, Passage, Request
from ralmspec_plugins.workloads.sentences import Sentences
from tests.workloads.scripted import ScriptedLM

REQUEST = Request(prompt="who was it then", max_tokens=99)
HITS = (Hit(Passage("p", "text")),)


class ScriptedSentences(ScriptedLM):
    """Writes its script sentence by sentence."""

    def write_sentence(
        self, draft: tuple[str, ...], passages: Any, tokens: int, progress: Progress
    ) -> tuple[str, ...]:
        count = len(draft)
        while not self.finished(draft) and len(draft) - count < tokens:
            draft = super().write(draft, passages, 1, progress)
            if draft[-1].endswith("."):
                break
        return draft


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is. Two", "One is."),
        ("It weighs 3.5 kg. Two", "It weighs 3.5 kg."),
        ('"Is it?" he said. Two', '"Is it?"'),
        ("(So it is.) Two", "(So it is.)"),
        ("What?! Two", "What?!"),
        ("Well... Two", "Well..."),
        ("One is.\nTwo", "One is."),
        ("No more is known.", None),
        ("www.example.com is", None),
        ("雨です。次", "雨です。"),
        ("「雨です。」次", "「雨です。」"),
        ("雨です。", None),  # a closing mark may follow
        ("", None),
    ],
)
def test_where_a_sentence_ends(text: str, expected: str | None) -> None:
    """Behind its mark and what closes with it, once the next character shows that."""
    end = sentence_end(text, 0)

    assert expected == (None if end is None else text[:end])


@given(text=st.text(st.sampled_from("ab. \n!?\"'5。」"), max_size=14), start=st.integers(0, 6))
def test_an_end_that_was_found_stays(text: str, start: int) -> None:
    """A text that grows has its first end where the whole one has it."""
    end = sentence_end(text, start)
    found = [sentence_end(text[:size], start) for size in range(len(text) + 1)]

    assert {one for one in found if one is not None} <= {end}


def test_the_question_is_asked_in_full_and_then_the_end_of_the_text() -> None:
    """One query before each sentence, until the text has ended."""
    workload = Sentences(ScriptedSentences("It rained. It poured. Then"), query_tokens=2)
    state, queries = workload.start(REQUEST), []
    while (query := workload.query(state)) is not None:
        queries.append(query)
        state = workload.extend(state, HITS, Progress())

    assert queries == ["who was it then", "It rained.", "It poured."]
    assert workload.text(state) == "It rained. It poured. Then"


def test_no_more_sentences_than_allowed() -> None:
    """And none longer than allowed."""
    lm = ScriptedSentences("a b c d. e. f. g.")
    answer = plain(Sentences(lm, tokens=3, max_sentences=3), WordRetriever(["x"]), REQUEST)

    assert answer.text == "a b c d. e."


@pytest.mark.parametrize("name", ["tokens", "query_tokens", "max_sentences"])
def test_lengths_are_at_least_one(name: str) -> None:
    """Nothing would be written or asked."""
    with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
        Sentences(ScriptedSentences("a"), **{name: 0})


def test_reports_are_states_and_cancellation_reaches_the_model() -> None:
    """Whoever listens hears states of the workload, and can stop the model."""
    workload = Sentences(ScriptedSentences("one two three."))
    reports: list[str] = []
    progress = Progress(lambda state: (reports.append(workload.settled(state)), progress.cancel()))

    with pytest.raises(Cancelled):
        workload.extend(workload.start(REQUEST), HITS, progress)
    assert reports == ["one"]


def test_keys_tell_states_apart() -> None:
    """Queries depend on text and count; a sentence on what the model says too."""
    workload = Sentences(ScriptedSentences("one. two."))
    begun = workload.start(REQUEST)
    once = workload.extend(begun, HITS, Progress())

    assert workload.query_key(begun) == workload.query_key(workload.start(REQUEST))
    assert workload.query_key(begun) != workload.query_key(once)
    assert workload.extend_key(begun, HITS) != workload.extend_key(once, HITS)
    assert workload.extend_key(begun, HITS) != workload.extend_key(begun, ())


def test_what_a_model_cannot_do_the_workload_does_not_offer() -> None:
    """Engines look for these methods: they must be missing where they would fail."""
    plain_lm: Any = ScriptedSentences("one.")
    assert not hasattr(Sentences(plain_lm), "aextend")
    assert not hasattr(Sentences(plain_lm), "agree")
    assert not Sentences(plain_lm).side_by_side


async def test_what_a_model_can_do_the_workload_offers() -> None:
    """Awaited writing, its own idea of equal passages, and calls side by side."""

    class Able(ScriptedSentences):
        side_by_side = True

        async def awrite_sentence(self, *given: Any) -> tuple[str, ...]:
            return self.write_sentence(*given)

        def same_passages(self, one: Any, other: Any) -> bool:
            return [passage.text for passage in one] == [passage.text for passage in other]

    workload: Any = Sentences(Able("one. two."))
    begun = workload.start(REQUEST)
    others = (Hit(Passage("q", "text")),)

    assert workload.extend(begun, HITS, Progress()) == await workload.aextend(
        begun, HITS, Progress()
    )
    assert workload.agree(begun, HITS, others)
    assert not workload.agree(begun, HITS, ())
    assert workload.side_by_side


def test_a_local_model_stops_behind_its_sentence() -> None:
    """It goes on until a token shows the sentence complete, and not a token further."""
    lm = HuggingFaceLM(tiny_llama(), tiny_tokenizer())
    request = Request(prompt="The keeper counted ships", max_tokens=400, seed=1)
    draft, ends = lm.begin(request), 0
    while not draft.finished:
        start = len(draft.transcript.text)
        written = lm.write_sentence(draft, [Passage("p", "a storm")], 40, Progress())
        expected = draft
        while len(expected.tokens) < len(written.tokens):
            assert sentence_end(expected.transcript.text, start) is None
            expected = lm.write(expected, [Passage("p", "a storm")], 1, Progress())
        assert expected == written
        ends += sentence_end(written.transcript.text, start) is not None
        draft = written
    assert ends


def test_speculation_changes_no_token_of_a_sentence() -> None:
    """With a local model, whose text goes one token beyond each sentence."""
    lm = HuggingFaceLM(tiny_llama(), tiny_tokenizer())
    retriever = WordRetriever(["ships sail the sea", "a storm is near", "the señor pays 25 €"])
    workload = Sentences(lm, tokens=12, max_sentences=6)
    with Engine(workload, retriever) as engine:
        for seed in range(3):
            request = Request(prompt=f"The keeper counted ships {seed}", max_tokens=60, seed=seed)
            expected, answer = plain(workload, retriever, request), engine.run(request)

            assert expected == answer
            assert expected.state.draft.tokens == answer.state.draft.tokens
