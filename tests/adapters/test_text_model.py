"""Any host's model in the core: the steps of a text, whoever makes the calls."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from ralmspec_plugins.adapters.text_model import Show, Step, TextLM, check_step, first_step
from ralmspec_plugins.adapters.text_state import TextDraft, Written
from ralmspec_plugins.errors import Cancelled, ConfigError, ModelError
from ralmspec_plugins.protocols import Progress, scored_model
from ralmspec_plugins.types import Request

TEXT = "It rains. It pours. The old man is snoring."


@dataclass
class Copier:
    """Writes a known text, so many words of it as it is told; keeps what it was asked."""

    awaits: bool = False
    calls: list[tuple[Step, int, str | None]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def call(
        self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None
    ) -> "CopierCall":
        self.calls.append((step, bound, sentence_stop))
        return CopierCall(self, draft, step, bound, sentence_stop)

    def scored(self) -> "Copier":
        return replace(self)

    def write_key(self, draft: TextDraft, given: str, tokens: int) -> Hashable:
        return draft.text, given, tokens

    def same(self, one: str, other: str) -> bool:
        return one.lower() == other.lower()


@dataclass
class CopierCall:
    copier: Copier
    draft: TextDraft
    step: Step
    bound: int
    sentence_stop: str | None

    @contextmanager
    def alone(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.copier.errors.append(str(error))
            raise

    def write(self, given: str, progress: Progress, show: Show) -> Written:
        if not given:
            raise ValueError("nothing was given")
        words = TEXT[len(self.draft.text) :].split(" ")
        came = words if self.step in ("whole", "stop") else words[: self.bound]
        text = " ".join(came) + ("" if len(came) == len(words) else " ")
        if self.step == "stop":
            text = text.split(self.sentence_stop or "")[0]
        for end in range(1, len(text) + 1):
            progress.check()
            show(Written(text[:end]))
        return Written(text, ended=len(came) == len(words))

    async def awrite(self, given: str, progress: Progress, show: Show) -> Written:
        return self.write(given, progress, show)


def finished(lm: TextLM[str], *, sentences: bool = False) -> TextDraft:
    draft = lm.begin(Request(prompt="Sing!", max_tokens=99))
    while not lm.finished(draft):
        write = lm.write_sentence if sentences else lm.write
        draft = write(draft, "passages", 4, Progress())
    return draft


def test_a_text_is_written_in_the_steps_that_are_asked_for() -> None:
    """By tokens, by sentences, up to a stop, and at once: the same text."""
    steps: list[list[tuple[Step, int, str | None]]] = []
    for whole, stop, sentences in (
        (False, None, False),
        (False, None, True),
        (False, ".", True),
        (True, None, False),
    ):
        copier = Copier()
        draft = finished(TextLM(copier, whole=whole, sentence_stop=stop), sentences=sentences)
        assert TEXT == draft.text
        steps.append(copier.calls)

    assert [("tokens", 4, None)] * 3 == steps[0]
    assert {("sentence", 4, None)} == set(steps[1])
    assert {("stop", 4, ".")} == set(steps[2])
    assert [("whole", 4, None)] == steps[3]


async def test_twins_are_awaited_where_the_model_is() -> None:
    """Only a model that holds up nobody has them, and they write the same."""
    assert not hasattr(TextLM(Copier()), "awrite")
    assert not hasattr(TextLM(Copier()), "awrite_sentence")

    lm = TextLM(Copier(awaits=True))
    draft = lm.begin(Request(prompt="Sing!"))
    expected = lm.write(draft, "passages", 4, Progress())
    assert expected == await lm.awrite(draft, "passages", 4, Progress())
    expected = lm.write_sentence(draft, "passages", 4, Progress())
    assert expected == await lm.awrite_sentence(draft, "passages", 4, Progress())


async def test_what_is_finished_is_not_asked_for() -> None:
    """No call is planned for a text that has ended."""
    copier = Copier(awaits=True)
    lm = TextLM(copier)
    draft = finished(lm)
    made = len(copier.calls)

    assert draft == lm.write(draft, "passages", 4, Progress())
    assert draft == await lm.awrite_sentence(draft, "passages", 4, Progress())
    assert made == len(copier.calls)


def test_a_stream_shows_the_draft_as_it_grows() -> None:
    """What comes behind a sentence is not shown; a cancelled segment stops at its next piece."""
    lm = TextLM(Copier())
    shown: list[str] = []
    progress = Progress(lambda draft: shown.append(draft.text))
    draft = lm.write_sentence(lm.begin(Request(prompt="Sing!")), "passages", 4, progress)

    assert "It rains." == draft.text == shown[-1]
    assert sorted(set(shown)) == ["It rains."[:end] for end in range(1, 10)]

    progress.connect(lambda _: progress.cancel())
    with pytest.raises(Cancelled):
        lm.write(draft, "passages", 4, progress)


def test_a_cancelled_segment_is_not_begun() -> None:
    """Nothing is called, and nothing is noted."""
    copier, progress = Copier(), Progress()
    progress.cancel()
    lm = TextLM(copier)
    with pytest.raises(Cancelled):
        lm.write(lm.begin(Request(prompt="Sing!")), "passages", 4, progress)

    assert not copier.errors


def test_errors_are_noted_where_the_call_is_alone() -> None:
    """They may count later."""
    copier = Copier()
    lm = TextLM(copier)
    with pytest.raises(ValueError, match="nothing"):
        lm.write(lm.begin(Request(prompt="Sing!")), "", 4, Progress())

    assert ["nothing was given"] == copier.errors


def test_a_model_is_what_its_writer_says() -> None:
    """Keys and sameness are the writer's."""
    lm = TextLM(Copier(), side_by_side=True)
    draft = lm.begin(Request(prompt="Sing!"))

    assert ("", "passages", 4) == lm.write_key(draft, "passages", 4)
    assert lm.same_passages("a", "A")
    assert lm.side_by_side
    assert ("Sing!", "", False) == lm.text_key(draft)


def test_steps_that_make_no_sense() -> None:
    """They are refused before a call."""
    assert ["whole", "stop", "tokens"] == [
        first_step(whole=True, sentence_stop=None),
        first_step(whole=False, sentence_stop="!"),
        first_step(whole=False, sentence_stop=None),
    ]
    for whole, stop in ((False, ""), (True, ".")):
        with pytest.raises(ConfigError):
            TextLM(Copier(), whole=whole, sentence_stop=stop)
    lm = TextLM(Copier(), sentence_stop=".")
    with pytest.raises(ConfigError, match="sentences"):
        lm.write(lm.begin(Request(prompt="Sing!")), "passages", 4, Progress())


def test_models_that_cannot_take_steps_are_refused_by_name() -> None:
    """And the message says what can be done."""
    able = {"bounded": True, "takes_stop": True, "continues": True, "instead": "(or so)"}
    for step in ("tokens", "sentence", "stop", "whole"):
        check_step("Model", step, **able)
    check_step("Model", "whole", bounded=False, takes_stop=False, continues=False, instead="")
    for step, ability, said in (
        ("tokens", "bounded", "maximum number of tokens is unknown"),
        ("stop", "takes_stop", "stop strings"),
        ("sentence", "continues", "(or so)"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_step("Model", step, **{**able, ability: False})
        assert "Model" in str(caught.value)
        assert said in str(caught.value)


def test_sentences_by_a_stop_string_have_no_log_probabilities() -> None:
    """The mark that ends a sentence is not shown, so nothing can be said of it."""
    with pytest.raises(ConfigError, match="leave sentence_stop out"):
        TextLM(Copier(), sentence_stop=".").scored()


def test_a_scored_model_asks_for_them_and_is_refused_without() -> None:
    """The writer is one that asks; the model itself stays as it was, awaited methods included."""
    lm = TextLM(Copier(awaits=True))
    scored = scored_model(lm, (0.5,))
    with pytest.raises(ModelError, match="gave none that spell its text"):
        scored.write(scored.begin(Request(prompt="Sing!")), "passages", 4, Progress())  # type: ignore[arg-type]

    assert finished(lm).text == TEXT
    assert scored.awrite.__self__ is scored is not lm  # type: ignore[attr-defined]
