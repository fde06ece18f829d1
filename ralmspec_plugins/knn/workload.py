"""The KNN-LM workload: each token is chosen with the nearest neighbours of a hidden state."""

from collections.abc import Hashable, Sequence
from typing import Protocol

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.knn.interpolation import Floats, Mixing, interpolate
from ralmspec_plugins.knn.search import Neighbours
from ralmspec_plugins.knn.state import KNNDraft, TokenModel
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Query, Request


class TokenChooser(Protocol):
    """Chooses the next token from log-probabilities, greedily or by sampling."""

    needs_history: bool  # whether the choice depends on earlier tokens

    def choose(self, log_probs: Floats, history: Sequence[int], seed: int, position: int) -> int:
        """Choose the token at a position of the text; a draw is keyed by seed and position."""
        ...


class KNNLM:
    """Searches for every token, and interpolates the neighbours' next tokens.

    This is the KNN-LM workload of RaLMSpec (after Khandelwal et
    al. 2020). A step is a token, the query is the model's hidden state, and the hits
    are the datastore's nearest entries, whose values vote for the next token.

    Verification is relaxed, as in the paper: a guess is right when it chooses the
    token that the real neighbours choose, since the token is all that later steps
    depend on. The record holds the real neighbours in every case. The verification of
    a wrong guess also yields the right token, so it costs only the
    passes after the wrong one.

    Draws are keyed by seed and position, so this also applies to sampled texts.
    """

    inline_query = True
    reads_scores = True

    def __init__(
        self, model: TokenModel, chooser: TokenChooser, mixing: Mixing | None = None
    ) -> None:
        """Create the workload of a model, a rule of choice and a mixture."""
        self.model = model
        self.chooser = chooser
        self.mixing = mixing if mixing is not None else Mixing()

    def start(self, request: Request) -> KNNDraft:
        """Read the prompt."""
        return self.model.begin(request)

    def query(self, state: KNNDraft) -> Query | None:
        """Return the hidden state as a query, with its bytes as the key."""
        if state.hidden is None:
            return None
        return Query("", state.hidden, key=state.hidden.tobytes())

    def extend(self, state: KNNDraft, hits: Hits, progress: Progress) -> KNNDraft:
        """Choose the next token, and run its pass unless it ends the text."""
        progress.check()
        return self.model.feed(state, self.chosen(state, hits), progress)

    def agree(self, state: KNNDraft, guess: Hits, hits: Hits) -> bool:
        """Return whether the guess chooses the token that the real neighbours choose."""
        return guess is hits or self.chosen(state, guess) == self.chosen(state, hits)

    def chosen(self, state: KNNDraft, hits: Hits) -> int:
        """Return the token chosen after an unfinished state with these hits."""
        return state.choices.of(hits, lambda: self._choose(state, hits))

    def _choose(self, state: KNNDraft, hits: Hits) -> int:
        assert state.log_probs is not None, "a finished text has no next token"
        mixing, draft = self.mixing, state.draft
        near = _neighbours(hits)
        mixed = interpolate(state.log_probs, near, mixing.weight, mixing.temperature)
        history = draft.prompt_tokens + draft.tokens if self.chooser.needs_history else ()
        return self.chooser.choose(mixed, history, draft.origin.seed, len(draft.tokens))

    def text(self, state: KNNDraft) -> str:
        """Return the generated text, without the prompt."""
        return state.text

    def settled(self, state: KNNDraft) -> str:
        """Return the part of the text that no later token can change."""
        return state.settled

    def query_key(self, state: KNNDraft) -> Hashable | None:
        """Return `None`: forming a query costs no more than a cache lookup."""
        return None

    def extend_key(self, state: KNNDraft, hits: Hits) -> Hashable | None:
        """Return `None`, so that dropped segments are not cached.

        A dropped segment cannot be reused, since it follows a wrong token.
        Caching 512 of them would cost 100 MB with GPT-2's vocabulary.
        """
        return None

    def release(self, state: KNNDraft) -> None:
        """Free the model's caches for this request."""
        self.model.release(state)


def _neighbours(hits: Hits) -> Neighbours:
    if not isinstance(hits, Neighbours):
        raise InputError(
            f"KNN-LM needs a retriever that returns Neighbours, got {type(hits).__name__}; "
            "use one over a Datastore (ralmspec_plugins.knn)"
        )
    return hits
