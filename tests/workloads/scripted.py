"""A language model that writes a fixed text, word by word, and notes what it was asked."""

from collections.abc import Hashable, Sequence

from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage, Request


class ScriptedLM:
    """Its draft is the words so far; it ends when the script does."""

    def __init__(self, script: str) -> None:
        self.words = tuple(script.split())
        self.written: list[tuple[tuple[str, ...], int]] = []  # passages and tokens of each write
        self.released: list[tuple[str, ...]] = []

    def begin(self, request: Request) -> tuple[str, ...]:
        return ()

    def write(
        self,
        draft: tuple[str, ...],
        passages: Sequence[Passage],
        tokens: int,
        progress: Progress,
    ) -> tuple[str, ...]:
        self.written.append((tuple(passage.id for passage in passages), tokens))
        for word in self.words[len(draft) : len(draft) + tokens]:
            progress.check()
            draft = (*draft, word)
            progress.report(draft)
        return draft

    def finished(self, draft: tuple[str, ...]) -> bool:
        return len(draft) == len(self.words)

    def tail(self, draft: tuple[str, ...], tokens: int) -> str:
        return " ".join(draft[-tokens:])

    def text(self, draft: tuple[str, ...]) -> str:
        return " ".join(draft)

    def settled(self, draft: tuple[str, ...]) -> str:
        return " ".join(draft)

    def text_key(self, draft: tuple[str, ...]) -> Hashable:
        return "text", draft

    def write_key(
        self, draft: tuple[str, ...], passages: Sequence[Passage], tokens: int
    ) -> Hashable:
        return "write", draft, tuple(passage.id for passage in passages), tokens

    def release(self, draft: tuple[str, ...]) -> None:
        self.released.append(draft)
