"""Tokens of a server laid along the text of its reply, and cut with it."""

from random import Random
from types import SimpleNamespace

import pytest

from ralmspec_plugins.adapters.logprobs import ScoredToken, aligned, entries_of, first_tokens
from ralmspec_plugins.adapters.text_model import TextLM, check_logprobs
from ralmspec_plugins.adapters.text_state import TextDraft, Written, grown, grown_by_sentence
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.types import Request, TokenLogprob

TEXT = "It was 5 \u20ac \U0001f642 then.\n"


def _bytes(text: str, rng: Random) -> list[dict[str, object]]:
    """Cut a text's bytes anywhere, as byte-level tokenizers do."""
    data, tokens = text.encode(), []
    while data:
        part, data = data[: (size := rng.randint(1, 3))], data[size:]
        token = part.decode(errors="replace")
        tokens.append({"token": token, "bytes": list(part), "logprob": -float(len(tokens))})
    return tokens


def test_bytes_are_tokens_of_any_kind() -> None:
    """Characters are cut anywhere: as a dict or an object, with bytes or only shown, they fit."""
    for seed in range(40):
        tokens = _bytes(TEXT, Random(seed))
        shown = [{**token, "bytes": None} for token in tokens]
        objects = SimpleNamespace(content=[SimpleNamespace(**token) for token in tokens])
        completion = {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
        }
        for said in ({"content": tokens}, objects, {"content": shown}, completion):
            found = aligned(entries_of(said), TEXT)

            assert found is not None
            assert TEXT == "".join(one.text for one in found)
            assert [-float(number) for number in range(len(tokens))] == [
                one.logprob for one in found
            ]


def test_what_the_host_cut_off_is_left_out() -> None:
    """White space in front, a stop string behind: tokens are cut as the text is."""
    entries = [
        ScoredToken(" \n", -1.0),
        ScoredToken(" One", -2.0),
        ScoredToken(" two", -3.0),
        ScoredToken(" END", -4.0),
    ]

    assert (("", -1.0), ("One", -2.0), (" t", -3.0)) == tuple(
        (one.text, one.logprob) for one in aligned(entries, "One t") or ()
    )
    assert aligned(entries, "Another") is None
    assert aligned(entries, " \n One two END more") is None
    assert () == aligned([], "")
    assert aligned([], "text") is None


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"content": []},
        {"content": [{"token": "a", "logprob": None}]},
        {"tokens": ["a", "b"], "token_logprobs": [-1.0]},
    ],
)
def test_what_says_nothing_has_no_tokens(said: object) -> None:
    """A server that was asked and answers without them."""
    assert [] == entries_of(said)


def _written(*texts: str, ended: bool | None = None) -> Written:
    found = tuple(TokenLogprob(text, -float(at)) for at, text in enumerate(texts))
    return Written("".join(texts), ended=ended, logprobs=found)


def test_a_draft_has_those_of_its_text() -> None:
    """Over segments, cut behind a sentence, cut by a stop string that began in the one before."""
    draft = TextDraft(Request(prompt="?", max_tokens=99, stop=("END",)))
    draft = grown_by_sentence(draft, _written("It", " rains. It", " pours"), 8)
    draft = grown(draft, _written(" Now", " E"), 8)
    assert ["It", " rains.", " Now", " E"] == [one.text for one in draft.logprobs or ()]
    draft = grown(draft, _written("ND", " more"), 8)

    assert "It rains. Now " == draft.text
    assert ["It", " rains.", " Now", " "] == [one.text for one in draft.logprobs or ()]
    assert [0.0, -1.0, 0.0, -1.0] == [one.logprob for one in draft.logprobs or ()]


def test_an_empty_text_needs_none() -> None:
    """A server that ends at once may give no tokens: those before it are still there."""
    draft = grown(TextDraft(Request(prompt="?")), _written("a"), 4)
    for grow in (grown, grown_by_sentence):
        ended = grow(draft, Written("", ended=True), 4)

        assert ended.finished
        assert ["a"] == [one.text for one in ended.logprobs or ()]


def test_a_draft_with_a_call_without_has_none() -> None:
    """The message says so; the draft's value is what it is with them."""
    draft = TextDraft(Request(prompt="?"))
    with_them = grown(grown(draft, _written("a"), 4), _written("b"), 4)
    without = grown(grown(draft, Written("a"), 4), _written("b"), 4)

    assert with_them == without
    assert hash(with_them) == hash(without)
    lm: TextLM[str] = object.__new__(TextLM)
    assert with_them.logprobs == lm.logprobs(with_them)
    with pytest.raises(InputError, match="without log-probabilities"):
        lm.logprobs(without)


def test_a_model_that_is_not_known_to_have_them_is_refused() -> None:
    """The message names the class, the argument and the other way."""
    assert {"logprobs": 5} == check_logprobs("Known", {"logprobs": 5})
    with pytest.raises(ConfigError, match=r"how Odd is asked.*logprobs=\{.*direct=True"):
        check_logprobs("Odd", None)


def test_cutting_keeps_what_is_left() -> None:
    """At any length the tokens spell what is left of the text."""
    found = _written("ab", "", "cde", "", "f", "").logprobs
    assert found is not None
    for length in range(7):
        kept = first_tokens(found, length)
        assert "abcdef"[:length] == "".join(one.text for one in kept or ())
    assert found == first_tokens(found, 6)
