"""In-Context RALM: every few tokens, retrieve with the last tokens and replace the passages."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel
from ralmspec_plugins.types import Hits, Request, read_by
from ralmspec_plugins.workloads.base import DraftWorkload

DraftT = TypeVar("DraftT")


class Interval(DraftWorkload[DraftT, DraftT], Generic[DraftT]):
    """Write `interval` tokens, retrieve with the last `query_tokens`, and repeat.

    This is the workload of Ram et al. and of RaLMSpec: the new passages replace the old
    ones before the prompt. Its state is the model's own draft.
    """

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        interval: int = 4,  # as in the paper: the generation stride
        query_tokens: int = 32,  # as in the paper: the last 32 tokens of the text so far
    ) -> None:
        """Create a workload that retrieves every `interval` tokens of `lm`.

        Raises:
            ConfigError: a length is below 1.
        """
        if interval < 1:
            raise ConfigError(f"interval must be at least 1, got {interval}")
        if query_tokens < 1:
            raise ConfigError(f"query_tokens must be at least 1, got {query_tokens}")
        super().__init__(lm)
        self.interval = interval
        self.query_tokens = query_tokens

    def start(self, request: Request) -> DraftT:
        """Return the draft of the tokenized prompt."""
        return self.lm.begin(request)

    def query(self, state: DraftT) -> str | None:
        """Return the last tokens of prompt and text, or `None` if the text has ended."""
        return None if self.lm.finished(state) else self.lm.tail(state, self.query_tokens)

    def query_key(self, state: DraftT) -> Hashable | None:
        """Return the tokens: a query does not depend on the model's caches."""
        return self.lm.text_key(state)

    def extend_key(self, state: DraftT, hits: Hits) -> Hashable | None:
        """Return a key of all that the model's next tokens depend on exactly."""
        return self.lm.write_key(state, read_by(self.lm, hits), self.interval)

    def draft(self, state: DraftT) -> DraftT:
        """Return the state, which is the draft."""
        return state

    def after(self, state: DraftT, draft: DraftT) -> DraftT:
        """Return the draft, which is the state."""
        return draft

    def tokens_of(self, state: DraftT) -> int:
        """Return the interval."""
        return self.interval
