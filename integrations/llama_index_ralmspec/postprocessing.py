"""The host's node postprocessors: run as its query engine does, and what is known of them."""

from collections.abc import Hashable, Sequence
from typing import Any, Final

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.callbacks import tagged
from llama_index_ralmspec.documents import nodes_of, passage_of
from ralmspec_plugins.adapters.fingerprint import is_known, qualified_name
from ralmspec_plugins.types import Hits, passages_of, same_to_read

_NODE: Final = "llama_index.core.postprocessor.node"
# What these do depends on nodes alone: on no scores, no question, no model, no clock.
_BLIND: Final = frozenset(
    {
        f"{_NODE}.KeywordNodePostprocessor",
        f"{_NODE}.PrevNextNodePostprocessor",
        "llama_index.core.postprocessor.metadata_replacement.MetadataReplacementPostProcessor",
        "llama_index.core.postprocessor.node_recency.FixedRecencyPostprocessor",
    }
)
# These look at scores besides, but their results hold none that were not there before.
_SORTING: Final = frozenset({f"{_NODE}.LongContextReorder", f"{_NODE}.SimilarityPostprocessor"})
# Blind, but dear to run, or reading a store: not to be run just to see what comes out.
_DEAR: Final = frozenset(
    {f"{_NODE}.KeywordNodePostprocessor", f"{_NODE}.PrevNextNodePostprocessor"}
)


class Postprocessing:
    """Node postprocessors, one after the other."""

    def __init__(self, postprocessors: Sequence[BaseNodePostprocessor] = ()) -> None:
        """Take these over, in their order."""
        self.postprocessors = postprocessors

    def run(self, nodes: list[NodeWithScore], bundle: QueryBundle) -> list[NodeWithScore]:
        """Process nodes; they are the postprocessors' to change."""
        for one in self.postprocessors:
            nodes = one.postprocess_nodes(nodes, query_bundle=bundle)
        return nodes

    async def arun(self, nodes: list[NodeWithScore], bundle: QueryBundle) -> list[NodeWithScore]:
        """Process nodes with the asynchronous methods."""
        for one in self.postprocessors:
            nodes = await one.apostprocess_nodes(nodes, query_bundle=bundle)
        return nodes

    @property
    def reads_scores(self) -> bool:
        """Whether a postprocessor may look at scores."""
        return not all(name in _BLIND for name in self._names())

    @property
    def unknown(self) -> list[Any]:
        """List those that may do more than what the nodes say: ask a model, keep something."""
        pairs = zip(self.postprocessors, self._names(), strict=True)
        return [one for one, name in pairs if name not in _BLIND | _SORTING]

    def same(self, guess: Hits, truth: Hits) -> bool:
        """Say whether the same nodes come out of both, whatever their scores.

        Scores may differ where they decide nothing: a guess has the passages that the
        search gives, and scores of its own making.
        """
        if passages_of(guess) != passages_of(truth):
            return False
        names = self._names()
        if same_to_read(guess, truth) or all(name in _BLIND for name in names):
            return True
        if not all(name in _BLIND - _DEAR or name in _SORTING for name in names):
            return False
        left = self._left_of(guess)
        return left is not None and left == self._left_of(truth)

    def _left_of(self, hits: Hits) -> list[Any] | None:
        """Give the passages that are left of hits, or nothing where that fails."""
        with tagged():
            try:
                nodes = self.run(nodes_of(hits), QueryBundle(""))
                return [passage_of(one.node) for one in nodes]
            except Exception:  # noqa: BLE001 raised again where it counts, by the call itself
                return None

    def _names(self) -> list[str]:
        """Name the postprocessors' classes; one with a method of its own is of none."""
        named = [(one, qualified_name(type(one))) for one in self.postprocessors]
        return [name if is_known(one, {name}) else "" for one, name in named]


def valued(hits: Hits, *, scores: bool) -> Hashable:
    """Hold all that can be seen of hits, their scores too where somebody looks at them."""
    return tuple(passages_of(hits)), tuple(hit.score for hit in hits) if scores else None
