"""Long contexts: files that stand in front of each question, and drafts of a part of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import typer

from ralmspec_plugins.cli import options
from ralmspec_plugins.cli.build import make_encoder
from ralmspec_plugins.retrieval.ingest import stream_texts
from ralmspec_plugins.types import NO_RETRIEVAL, Hit, Hits, NoRetrieval, Passage, Query, Request

UNCUT: Final = 2**31  # the maximum tokens of a passage: files are not cut


@dataclass(frozen=True, slots=True, kw_only=True)
class LongContextOptions:
    """Files that the model reads whole, and how a drafter retrieves from them.

    Options:
        long_context: A .txt, .md or .jsonl file (text), or a folder, that is read whole, in place
            of searching; may be repeated.
        draft_model: rapid: a smaller model with the same tokenizer. (default: the model itself)
        chunk_tokens: rapid: tokens of a chunk.
        threshold: rapid: the least cosine similarity of a chunk and the question.
        retrieve_tokens: rapid: tokens that are retrieved, if the files are not 24 times as long.
        eta: rapid: how far each token's distribution moves towards the drafter's. Above 0 the
            text is another one than the model's own.
    """

    PANEL: ClassVar[str] = "Long contexts"

    long_context: list[Path] | None = None
    draft_model: Annotated[str | None, {"metavar": "PATH"}] = None
    chunk_tokens: options.Count = 512
    threshold: Annotated[float, {"min": -1.0, "max": 1.0}] = 0.3
    retrieve_tokens: options.Count = 4096
    eta: Annotated[float, {"min": 0.0}] = 0.0

    def check(self, drafter: str, *, plain: bool) -> None:
        """Check that the options are used.

        Raises:
            BadParameter: an option does not belong to the drafter, the drafter has no files, or
                a plain run has a drafter.
        """
        given = [name for name in _RAPID if getattr(self, name) != getattr(_DEFAULTS, name)]
        if given and drafter != "rapid":
            raise typer.BadParameter(f"{options.option(given[0])} needs --drafter rapid")
        if drafter == "rapid" and not self.long_context:
            raise typer.BadParameter("--drafter rapid needs --long-context")
        if drafter != "none" and plain and not self.eta:
            raise typer.BadParameter(
                "--plain writes a token a pass; leave out --drafter, or --plain"
            )

    def files(self) -> "WholeFiles":
        """Read the files.

        Raises:
            InputError: there is none, or an unsupported one.
        """
        passages = [
            Passage(f"{path}#{number:04d}", text)
            for path in self.long_context or ()
            for number, text in enumerate(stream_texts([path]), start=1)
        ]
        return WholeFiles(passages)

    def decodings(self, encoder: str | None, device: str | None = None) -> Callable[[str], Any]:
        """Return what returns how tokens are drafted in a mode.

        Args:
            encoder: of chunks.
            device: of the smaller model, and of the encoder's.
        """
        from ralmspec_plugins.decoding import Decoding, KnowledgeTransfer, RagDrafter
        from ralmspec_plugins.lm.huggingface import load

        small = () if self.draft_model is None else load(self.draft_model, "auto", device)

        def decoding(mode: str) -> Any:
            if mode == options.PLAIN and not self.eta:
                return None
            drafter = RagDrafter(
                *small,
                encoder=make_encoder(encoder, device),
                chunk_tokens=self.chunk_tokens,
                threshold=self.threshold,
                least_tokens=self.retrieve_tokens,
            )
            transfer = KnowledgeTransfer(teacher=drafter, eta=self.eta) if self.eta else None
            return Decoding(drafter=() if mode == options.PLAIN else drafter, transfer=transfer)

        return decoding


_DEFAULTS: Final = LongContextOptions()
_SAMPLE: Final = 500  # letters of a file that are looked at
_RAPID: Final = ("draft_model", "chunk_tokens", "threshold", "retrieve_tokens", "eta")


class WholeFiles:
    """Finds all files for each question."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        """Create a retriever that always returns these passages."""
        self._hits: Hits = tuple(Hit(passage) for passage in passages)
        self.signature = ("whole files", *(passage.id for passage in passages))

    def samples(self) -> list[str]:
        """Return the start of each file."""
        return [hit.passage.text[:_SAMPLE] for hit in self._hits]

    def encode(self, text: str) -> Query:
        """Return the query of a text."""
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return all passages for each query."""
        return [self._hits for _ in queries]

    def query(self, request: Request) -> str | NoRetrieval:
        """Return a request's query; none if there is no file."""
        return request.prompt if self._hits else NO_RETRIEVAL
