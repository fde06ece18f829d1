"""Perplexity of held-out texts, with and without neighbours."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.interpolation import interpolate
from ralmspec_plugins.knn.model import KNNModel
from ralmspec_plugins.knn.perplexity import Foretold, foretell, windows
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_tokenizer
from ralmspec_plugins.types import Query
from tests.knn.worlds import ExactNeighbours

TEXTS = (
    "The lighthouse keeper counted the ships that passed the island before the storm.",
    "A passage is put in front of the prompt, and the model continues the text.",
)


@pytest.fixture(scope="module")
def model() -> KNNModel:
    return KNNModel(tiny_gpt2(), tiny_tokenizer())


def store_of(model: KNNModel, texts: Sequence[str]) -> Datastore:
    """Put every position of some texts in a datastore."""
    keys, values, ends = [], [], []
    for text in texts:
        tokens = model.encode(text)
        keys.append(model.read(tokens[:-1], tokens[1:]).hidden)
        values += tokens[1:]
        ends.append(len(values))
    return Datastore.of(np.concatenate(keys), values, ends)


@given(length=st.integers(0, 60), block=st.integers(2, 20), data=st.data())
def test_windows_foretell_each_token_once(length: int, block: int, data: st.DataObject) -> None:
    """In order, none twice, none left out, behind enough context, and none beyond its window."""
    stride = data.draw(st.integers(1, block - 1))
    cut = list(windows(length, block, stride))
    foretold = [place for _, first, end in cut for place in range(first, end)]

    assert foretold == list(range(1, length))
    for start, first, end in cut:
        assert end - start <= block
        assert first - start >= min(first, block - stride)
        assert first > start


def test_perplexity_agrees_with_a_direct_sum(model: KNNModel) -> None:
    """One window: the mixture's log-probability at each position, made from whole distributions."""
    retriever = ExactNeighbours(store_of(model, TEXTS[:1]), 8)
    tokens = model.encode(TEXTS[1])
    foretold = foretell(model, retriever, TEXTS[1:], temperature=5.0)
    total = own = 0.0
    for place in range(1, len(tokens)):
        last = model._passes.read(tokens[:place], 1)
        assert last.hidden is not None
        log_probs = last.logits[0].double().log_softmax(-1).numpy()
        hidden = last.hidden[0].numpy()
        [near] = retriever.search([Query("", hidden, key=hidden.tobytes())])
        total += interpolate(log_probs, near, 0.25, 5.0)[tokens[place]]
        own += log_probs[tokens[place]]
    count = len(tokens) - 1

    assert foretold.tokens == count
    assert foretold.model_perplexity == pytest.approx(math.exp(-own / count), rel=1e-3)
    assert foretold.perplexity(0.25) == pytest.approx(math.exp(-total / count), rel=1e-3)


def test_a_text_that_is_in_the_datastore_is_foretold(model: KNNModel) -> None:
    """With its own entries beside it a text is no surprise; with another's it stays one."""
    own = foretell(model, ExactNeighbours(store_of(model, TEXTS), 1), TEXTS)
    other = foretell(model, ExactNeighbours(store_of(model, TEXTS[:1]), 1), TEXTS[1:])

    assert own.perplexity(0.99) < 1.2
    assert own.model_perplexity > 100
    assert other.perplexity(0.99) > 10
    assert other.perplexity(1.0) == math.inf


def test_windows_change_little(model: KNNModel) -> None:
    """Shorter windows see less context, and foretell the same tokens."""
    retriever = ExactNeighbours(store_of(model, TEXTS), 4)
    whole = foretell(model, retriever, TEXTS)
    cut = foretell(model, retriever, TEXTS, block=16, stride=8)
    count = sum(len(model.encode(text)) - 1 for text in TEXTS)

    assert whole.tokens == cut.tokens == count
    assert whole.model[:15] == pytest.approx(cut.model[:15], abs=1e-4)
    assert whole.model_perplexity != cut.model_perplexity


def test_windows_are_cut_to_the_context() -> None:
    """A model of 16 positions reads a text of 40 tokens."""
    model = KNNModel(tiny_gpt2(context=16), tiny_tokenizer())
    long = TEXTS[0]
    tokens = model.encode(long)
    assert len(tokens) > 16
    store = Datastore.of(np.zeros((1, 32)), [3])

    assert foretell(model, ExactNeighbours(store, 1), [long]).tokens == len(tokens) - 1


def test_numbers_without_a_meaning_are_refused(model: KNNModel) -> None:
    """A stride beyond the block leaves tokens out; a text of one token foretells nothing."""
    retriever = ExactNeighbours(store_of(model, TEXTS), 1)
    with pytest.raises(ConfigError, match="stride must be at least 1 and below block, got 8"):
        foretell(model, retriever, TEXTS, block=8, stride=8)
    with pytest.raises(InputError, match="at least two tokens"):
        foretell(model, retriever, ["a", ""])
    with pytest.raises(ConfigError, match="weight"):
        Foretold(np.zeros(1), np.zeros(1), 1).perplexity(0.0)
