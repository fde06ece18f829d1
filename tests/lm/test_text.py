"""Text grows with its tokens, and what has been called settled never changes."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ralmspec_plugins.lm import text as lm_text
from ralmspec_plugins.lm.state import Draft, DraftOrigin
from ralmspec_plugins.lm.text import settled_length, stop_position
from ralmspec_plugins.testing.models import tiny_tokenizer

BYTES = tiny_tokenizer()
PROMPT = (40, 41, 42)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in sentencepiece's manner: a leading space is dropped, bytes are tokens."""
    pieces = ["<unk>", "▁the", "▁ship", "s", "▁", ".", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    raw = RawTokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw)


WORDS = _word_tokenizer()


def _grow(
    tokenizer: PreTrainedTokenizerFast,
    prompt: Sequence[int],
    tokens: Sequence[int],
    stop: tuple[str, ...] = (),
) -> list[Draft]:
    """Give the draft after each token, as a model would have it."""
    origin = DraftOrigin(0, (), tuple(prompt), len(tokens), 0, stop)
    drafts = [Draft(origin, lm_text.begin(prompt))]
    for token in tokens:
        if not drafts[-1].finished:
            drafts.append(drafts[-1].grown(token, (), lambda ids: _decode(tokenizer, ids)))
    return drafts


def _decode(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


TEXTS = st.text(alphabet="ab \n.é€🙂👩\u200d\ufe0f\u0301東", min_size=1, max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n.é🙂東", min_size=1, max_size=4), max_size=3).map(tuple)
IDS = st.lists(st.integers(0, len(BYTES) - 1), min_size=1, max_size=24)
TOKENS = st.one_of(TEXTS.map(lambda text: BYTES.encode(text)), IDS)


@settings(max_examples=200, deadline=None)
@given(tokens=TOKENS, stop=STOPS)
@example(tokens=BYTES.encode("a👩\u200d🙂"), stop=("🙂",))
def test_settled_text_never_changes(tokens: list[int], stop: tuple[str, ...]) -> None:
    """At every token, what is settled starts the final text, and includes what was before."""
    drafts = _grow(BYTES, PROMPT, tokens, stop)
    final = drafts[-1].text
    before = ""
    for draft in drafts:
        assert final.startswith(draft.settled)
        assert draft.settled.startswith(before)
        assert draft.text.startswith(draft.settled)
        before = draft.settled

    assert drafts[-1].finished
    assert final == drafts[-1].settled


@settings(max_examples=200, deadline=None)
@given(tokens=TOKENS, stop=STOPS)
def test_text_is_the_decoded_text_up_to_the_first_stop(
    tokens: list[int], stop: tuple[str, ...]
) -> None:
    """A byte-level text is what the tokenizer gives for all tokens, cut at a stop string."""
    drafts = _grow(BYTES, PROMPT, tokens, stop)
    last = drafts[-1]
    whole = _decode(BYTES, last.tokens)
    stops = [whole.find(mark) for mark in stop if mark in whole]
    if last.ending == "stop":
        assert whole[: min(stops)] == last.text
        assert not any(mark in drafts[-2].transcript.text for mark in stop)
    else:
        assert whole == last.text
        assert not stops


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(1, len(WORDS) - 1), min_size=1, max_size=20), stop=STOPS)
@example(tokens=[6 + 0xE2, 6 + 0x82, 6 + 0xAC, 6 + 0xE2, 5], stop=())
def test_settled_holds_where_decoding_looks_back(tokens: list[int], stop: tuple[str, ...]) -> None:
    """Also with a tokenizer whose decoding of more tokens changes the text of the first ones."""
    drafts = _grow(WORDS, (1, 2), tokens, stop)
    for draft in drafts:
        assert drafts[-1].text.startswith(draft.settled)


def test_a_word_keeps_its_leading_space() -> None:
    """Prompt and text together read as one: "the" + " ships"."""
    assert _grow(WORDS, (1,), (2, 3))[-1].text == " ships"
    assert _grow(WORDS, (), (2, 3))[-1].text == "ships"


def test_an_emoji_waits_for_its_last_byte() -> None:
    """Four bytes in several tokens show nothing until they are a character."""
    tokens = BYTES.encode("a🌋b")
    drafts = _grow(BYTES, PROMPT, tokens)

    assert len(tokens) > 3
    assert {"", "a", "a🌋", "a🌋b"} == {draft.settled for draft in drafts}
    assert any(draft.text.endswith("\ufffd") for draft in drafts)


def test_bytes_that_never_become_a_character_are_shown_in_the_end() -> None:
    """An answer that ends within a character keeps its replacement character."""
    tokens = BYTES.encode("a🌋")[:-1]
    drafts = _grow(BYTES, PROMPT, tokens)

    assert drafts[-1].text == drafts[-1].settled == _decode(BYTES, tokens)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_stop_string_may_cross_a_segment(size: int) -> None:
    """Drafts do not know segments: a mark is found wherever its last character comes."""
    tokens = [token for character in "one.\n\ntwo" for token in BYTES.encode(character)]
    drafts = _grow(BYTES, PROMPT, tokens, (".\n\nt"[:size],))

    assert drafts[-1].text == "one" if size < 8 else drafts[-1].ending == "stop"
    assert len(drafts[-1].tokens) == min(3 + size, 7)


def test_nothing_settles_that_may_start_a_stop_string() -> None:
    """Worked: of "ab." the last two may start "b.c", of "abb" only the last one."""
    assert settled_length("ab.", ["b.c"]) == 1
    assert settled_length("abb", ["b.c"]) == 2
    assert settled_length("abb", ["zz", "abbc"]) == 0
    assert settled_length("abb", []) == 3


def test_the_earliest_stop_string_cuts() -> None:
    """Worked: "xabc" with "bc" and "abc" complete at once; "abc" starts first."""
    assert stop_position("xabc", 3, ["bc", "abc"]) == 1
    assert stop_position("xabc", 4, ["bc"]) is None
    assert stop_position("xabc", 0, []) is None
