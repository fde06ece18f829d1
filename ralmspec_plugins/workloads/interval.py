"""In-Context RALM: every few tokens, ask with the last tokens and replace the passages."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel
from ralmspec_plugins.types import Hits, Request, read_by
from ralmspec_plugins.workloads.base import DraftWorkload

DraftT = TypeVar("DraftT")


class Interval(DraftWorkload[DraftT, DraftT], Generic[DraftT]):
    """Write `interval` tokens, ask with the last `query_tokens`, and start over.

    This is the workload of Ram et al. and of RaLMSpec: the new passages take the
    place of the old ones in front of the prompt. Its state is the model's own draft.
    """

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        interval: int = 4,  # as in the paper: the generation stride
        query_tokens: int = 32,  # as in the paper: the last 32 tokens of the text so far
    ) -> None:
        """Ask every `interval` tokens of `lm`.

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
        """Tokenise the prompt."""
        return self.lm.begin(request)

    def query(self, state: DraftT) -> str | None:
        """Ask with the last tokens of prompt and text, until the text has ended."""
        return None if self.lm.finished(state) else self.lm.tail(state, self.query_tokens)

    def query_key(self, state: DraftT) -> Hashable | None:
        """Hold the tokens: a query does not depend on the model's caches."""
        return self.lm.text_key(state)

    def extend_key(self, state: DraftT, hits: Hits) -> Hashable | None:
        """Hold what the model's next tokens depend on, to the last bit."""
        return self.lm.write_key(state, read_by(self.lm, hits), self.interval)

    def draft(self, state: DraftT) -> DraftT:
        """Give the state."""
        return state

    def after(self, state: DraftT, draft: DraftT) -> DraftT:
        """Give the draft."""
        return draft

    def tokens_of(self, state: DraftT) -> int:
        """Give the interval."""
        return self.interval
