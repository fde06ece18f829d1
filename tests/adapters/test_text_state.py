"""The rules by which a host's text grows, is cut, and ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.adapters.text_state import (
    Streamed,
    TextDraft,
    Usage,
    Written,
    first_sentence,
    grown,
    grown_by_sentence,
    grown_to_stop,
    tail,
    whole,
)
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Request

TEXTS = st.text(st.sampled_from("ab. \n!?\"')5é漢。」🙂\ud83d\ufffd"), max_size=12)


def begun(
    max_tokens: int = 20, stop: tuple[str, ...] = (), prompt: str = "Who was it?"
) -> TextDraft:
    return TextDraft(Request(prompt=prompt, max_tokens=max_tokens, stop=stop))


def test_a_call_adds_its_text_and_spends_its_bound() -> None:
    """Whatever came, the bound is spent: how a host counts its tokens is not known."""
    draft = grown(begun(10), Written(" a", usage=Usage(3, 1, 4)), 4)
    draft = grown(draft, Written(" b c", usage=Usage(4, 2, 6)), 4)

    assert (" a b c", 8, 2, False) == (draft.text, draft.spent, draft.calls, draft.finished)
    assert Usage(7, 3, 10) == draft.usage
    assert 2 == draft.allowed(4)


@pytest.mark.parametrize(
    ("written", "bound", "finished"),
    [
        (Written(" a"), 4, False),
        (Written(" a", ended=False), 4, False),
        (Written(" a", ended=True), 4, True),
        (Written(""), 4, True),
        (Written(" a"), 20, True),
        (Written(" a END b"), 4, True),
    ],
    ids=str,
)
def test_when_a_text_ends(written: Written, bound: int, finished: bool) -> None:
    """The model says so, nothing came, the bounds are used up, or a stop string came."""
    assert finished == grown(begun(stop=("END",)), written, bound).finished


def test_a_stop_string_across_two_calls_is_found() -> None:
    """It may begin in a text that an earlier call wrote; all behind its start is cut off."""
    draft = grown(begun(stop=("END", "zz")), Written("one E"), 4)
    assert ("one E", "one ") == (draft.text, draft.settled)

    draft = grown(draft, Written("ND two"), 4)
    assert ("one ", "one ", True) == (draft.text, draft.settled, draft.finished)


@given(
    pieces=st.lists(TEXTS, min_size=1, max_size=5), stop=st.lists(TEXTS.filter(bool), max_size=2)
)
def test_what_is_settled_never_changes(pieces: list[str], stop: list[str]) -> None:
    """Each settled text is a prefix of the next one and of the end; so with partial drafts."""
    draft = begun(max_tokens=20, stop=tuple(stop))
    settled = ""
    for piece in pieces:
        if draft.finished:
            break
        streamed = Streamed(draft)
        for size in range(len(piece)):
            shown = streamed.shown(Written(piece[:size]))

            assert shown.settled.startswith(settled)
            settled = shown.settled
        draft = grown(draft, Written(piece), 4)

        assert draft.settled.startswith(settled)
        settled = draft.settled
    assert draft.text.startswith(settled)
    assert not any(mark in draft.text for mark in stop)


def test_half_a_character_is_held_back() -> None:
    """A surrogate or a replacement sign at the end may be completed, until the text ends."""
    for half in ("\ud83d", "\ufffd", "\ufffd\ufffd"):
        draft = grown(begun(), Written("smile " + half), 4)
        assert ("smile " + half, "smile ") == (draft.text, draft.settled)

        ended = grown(draft, Written(""), 4)
        assert "smile " + half == ended.settled


def test_only_the_first_sentence_is_kept() -> None:
    """What follows it is asked for anew, with new passages; so the text goes on."""
    draft = grown_by_sentence(begun(), Written(" One is. Two", ended=True), 12)
    assert (" One is.", False) == (draft.text, draft.finished)
    assert 2 == draft.spent  # its words

    draft = grown_by_sentence(draft, Written(" Two is", ended=False), 12)
    assert (" One is. Two is", False) == (draft.text, draft.finished)
    assert 14 == draft.spent  # the bound was reached

    draft = grown_by_sentence(draft, Written(" so. ", ended=True), 6)
    assert (" One is. Two is so. ", True) == (draft.text, draft.finished)


def test_a_mark_at_the_seam_ends_no_empty_sentence() -> None:
    """A full stop that an earlier call wrote is not the end of this call's sentence."""
    assert " Two is." == first_sentence("One is.", " Two is. Three")
    assert '" Two is.' == first_sentence('"One is.', '" Two is. Three')
    assert "5 kg." == first_sentence("It weighs 3.", "5 kg. Then")


@given(text=TEXTS, piece=TEXTS)
def test_a_sentence_that_grows_is_cut_where_a_whole_one_is(text: str, piece: str) -> None:
    """What is shown of a streamed sentence is a prefix of what the plain call keeps."""
    kept = first_sentence(text, piece)
    for size in range(len(piece) + 1):
        assert kept.startswith(first_sentence(text, piece[:size])[: len(kept)])
        if len(first_sentence(text, piece[:size])) > len(kept):
            pytest.fail("a part of a text was cut behind the whole one")


def test_a_stop_string_ends_a_sentence_and_is_put_back() -> None:
    """Nothing more is an end; what a bound cut off gets no mark."""
    draft = grown_to_stop(begun(), Written(" It rained", ended=True), ".", 12)
    assert (" It rained.", 2, False) == (draft.text, draft.spent, draft.finished)

    cut = grown_to_stop(draft, Written(" It was cut", ended=False), ".", 12)
    assert (" It rained. It was cut", False) == (cut.text, cut.finished)

    ended = grown_to_stop(draft, Written(""), ".", 12)
    assert (" It rained.", True) == (ended.text, ended.finished)
    assert grown_to_stop(begun(max_tokens=2), Written(" It rained"), ".", 2).finished


@pytest.mark.parametrize("ended", [True, False, None])
def test_a_model_that_ignores_its_stop_string_is_cut_there(ended: bool | None) -> None:
    """The mark is there once; what stands behind it is dropped, as by a host that stops there."""
    draft = grown_to_stop(begun(), Written(" It rained. It poured. It", ended=ended), ".", 12)
    assert (" It rained.", 2, False) == (draft.text, draft.spent, draft.finished)

    draft = grown_to_stop(draft, Written(" It poured.", ended=ended), ".", 12)
    assert (" It rained. It poured.", 4, False) == (draft.text, draft.spent, draft.finished)

    draft = grown_to_stop(draft, Written(". More.", ended=ended), ".", 12)
    assert (" It rained. It poured.", True) == (draft.text, draft.finished)


@given(text=TEXTS, piece=TEXTS, mark=st.text("ab.", min_size=1, max_size=3), stop=st.lists(TEXTS))
def test_a_stream_up_to_a_mark_shows_nothing_behind_it(
    text: str, piece: str, mark: str, stop: list[str]
) -> None:
    """What it shows grows, and stays: where the model stops at the mark, and where it does not."""
    draft = TextDraft(Request(prompt="Who?", stop=tuple(filter(None, stop))), text)
    streamed, shown = Streamed(draft, sentence_stop=mark), [""]
    for size in range(len(piece) + 1):
        shown.append(streamed.shown(Written(piece[:size])).settled)
        assert shown[-1].startswith(shown[-2])

    for ended in (True, False):
        kept = grown_to_stop(draft, Written(piece, ended=ended), mark, 12)
        assert kept.text.startswith(shown[-1])


def test_a_whole_answer_is_taken_as_it_is() -> None:
    """But for a stop string that somebody asked for."""
    assert ("", True) == (whole(begun(), Written("")).text, True)
    assert "a b" == whole(begun(max_tokens=1), Written("a b", message="kept")).text
    assert "a " == whole(begun(stop=("b",)), Written("a b")).text
    assert "kept" == whole(begun(), Written("a", message="kept")).message


def test_a_draft_of_a_stream_spends_nothing() -> None:
    """And ends only at a stop string."""
    shown = Streamed(begun(max_tokens=4, stop=("END",))).shown(Written("a"))
    assert (0, False) == (shown.spent, shown.finished)

    assert Streamed(begun(stop=("END",))).shown(Written("a END")).finished


def test_a_stop_string_that_starts_in_front_of_another_one_is_waited_for() -> None:
    """What a stream shows at the end of one is taken back by a longer one around it."""
    streamed = Streamed(begun(stop=("ab c", "b")))
    shown = [streamed.shown(Written("ab c"[:size])).settled for size in range(1, 5)]

    assert ["", "", "", ""] == shown
    assert "" == grown(begun(stop=("ab c", "b")), Written("ab c"), 4).text


@given(text=TEXTS, piece=TEXTS, stop=st.lists(TEXTS.filter(bool), max_size=2))
def test_a_stream_shows_what_a_look_at_the_whole_text_shows(
    text: str, piece: str, stop: list[str]
) -> None:
    """It looks at new characters only; the sentence's end and the stop strings are the same."""
    draft = TextDraft(Request(prompt="Who?", stop=tuple(stop)), text)
    streamed, by_sentence = Streamed(draft), Streamed(draft, sentence=True)
    for size in range(len(piece) + 1):
        came = Written(piece[:size])
        sentence = Written(first_sentence(text, piece[:size]))

        assert Streamed(draft).shown(came) == streamed.shown(came)
        assert Streamed(draft).shown(sentence) == by_sentence.shown(came)


def test_a_long_stream_is_looked_at_once() -> None:
    """Not again for each piece: counted in characters that are searched for stop strings."""
    looked: list[int] = []

    class Text(str):
        """Counts what is searched."""

        __slots__ = ()

        def find(self, mark: str, since: int = 0) -> int:  # type: ignore[override]
            looked.append(len(self) - since)
            return str(self).find(mark, since)

        def __radd__(self, front: str) -> "Text":
            return Text(front + str(self))

    streamed = Streamed(begun(stop=("END",)))
    for size in range(1, 401):
        streamed.shown(Written(Text("word " * size)))

    assert len(looked) == 400
    assert sum(looked) < 5 * 400 + 3 * 400


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("Who was it, and when did it happen?", "", "Who was it, and when did it happen?"),
        ("Who?", "It was  her.", "Who? It was her."),
        ("Who was it, then?", "\n\nIt was her.", "then? It was her."),
        ("誰ですか", "東京の人です", "の人です"),
        ("", "   ", ""),
    ],
)
def test_the_query_is_the_end_of_question_and_text(prompt: str, text: str, expected: str) -> None:
    """The question in full, then the last four words, or characters where there are no words."""
    draft = grown(begun(prompt=prompt), Written(text), 4) if text else begun(prompt=prompt)

    assert expected == tail(draft, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a longer word " * 50, "a longer word"),
        ("東京の人です" * 40, "人です"),
        (" " * 200, "Who was it?"),
        ("x" * 500, "was it? " + "x" * 500),
    ],
)
def test_the_query_of_a_long_text_is_its_end(text: str, expected: str) -> None:
    """Only the end is looked at, but as much of it as the words take."""
    assert expected == tail(TextDraft(Request(prompt="Who was it?"), text), 3)


@given(question=TEXTS, text=TEXTS.filter(bool), words=st.integers(1, 5))
def test_the_query_can_be_formed_by_hand(question: str, text: str, words: int) -> None:
    """With spaces between words it is what anybody would write."""
    question, text = question.replace("漢", "x"), text.replace("漢", "x")
    expected = " ".join((question + " " + text).split()[-words:])

    assert expected == tail(TextDraft(Request(prompt=question), text), words)


def test_calls_and_records_are_no_part_of_the_value() -> None:
    """Usage, message and recording differ from run to run; drafts are equal all the same."""
    one = grown(begun(), Written("a", None, Usage(1, 1, 2), "m", "r"), 4)
    other = grown(begun(), Written("a"), 4)

    assert one == other
    assert hash(one) == hash(other)
    assert one != grown(begun(), Written("b"), 4)


def test_at_least_one_token_is_asked_for() -> None:
    """A bound of nothing would end the text."""
    with pytest.raises(ConfigError, match="at least 1"):
        begun().allowed(0)
