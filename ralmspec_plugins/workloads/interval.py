"""In-Context RALM: every few tokens, ask with the last tokens and replace the passages."""

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel, Progress
from ralmspec_plugins.types import Hits, Request, read_by

DraftT = TypeVar("DraftT")


class Interval(Generic[DraftT]):
    """Write `interval` tokens, ask with the last `query_tokens`, and start over.

    This is the workload of Ram et al. and of RaLMSpec (PAPERS 1.1 and 7): the
    new passages take the place of the old ones in front of the prompt. Its
    state is the model's own draft.
    """

    inline_query = True

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        interval: int = 4,  # PAPERS 1.10: the generation stride
        query_tokens: int = 32,  # PAPERS 1.10: the last 32 tokens of the text so far
    ) -> None:
        """Ask every `interval` tokens of `lm`.

        Raises:
            ConfigError: a length is below 1.
        """
        if interval < 1:
            raise ConfigError(f"interval must be at least 1, got {interval}")
        if query_tokens < 1:
            raise ConfigError(f"query_tokens must be at least 1, got {query_tokens}")
        self.lm = lm
        self.interval = interval
        self.query_tokens = query_tokens
        self.side_by_side: bool = getattr(lm, "side_by_side", False)
        self.reads_scores: bool = getattr(lm, "reads_scores", False)
        if hasattr(lm, "awrite"):
            self.aextend = self._aextend
        if hasattr(lm, "same_passages"):
            self.agree = self._agree

    def start(self, request: Request) -> DraftT:
        """Tokenise the prompt."""
        return self.lm.begin(request)

    def query(self, state: DraftT) -> str | None:
        """Ask with the last tokens of prompt and text, until the text has ended."""
        return None if self.lm.finished(state) else self.lm.tail(state, self.query_tokens)

    def extend(self, state: DraftT, hits: Hits, progress: Progress) -> DraftT:
        """Write the next tokens with these passages in front."""
        return self.lm.write(state, read_by(self.lm, hits), self.interval, progress)

    async def _aextend(self, state: DraftT, hits: Hits, progress: Progress) -> DraftT:
        """Do the same without holding up the event loop."""
        lm: Any = self.lm
        draft: DraftT = await lm.awrite(state, read_by(self.lm, hits), self.interval, progress)
        return draft

    def _agree(self, state: DraftT, guess: Hits, hits: Hits) -> bool:
        """Say whether the model sees the same in both."""
        lm: Any = self.lm
        return bool(lm.same_passages(read_by(self.lm, guess), read_by(self.lm, hits)))

    def text(self, state: DraftT) -> str:
        """Give what was written, without the prompt."""
        return self.lm.text(state)

    def settled(self, state: DraftT) -> str:
        """Give the part of the text that no later token can change."""
        return self.lm.settled(state)

    def query_key(self, state: DraftT) -> Hashable | None:
        """Hold the tokens: a query does not depend on the model's caches."""
        return self.lm.text_key(state)

    def extend_key(self, state: DraftT, hits: Hits) -> Hashable | None:
        """Hold what the model's next tokens depend on, to the last bit."""
        return self.lm.write_key(state, read_by(self.lm, hits), self.interval)

    def release(self, state: DraftT) -> None:
        """Free the model's caches for this request."""
        self.lm.release(state)
