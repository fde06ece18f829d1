"""The host's node postprocessors: run as in its query engine, and classified by their inputs."""

from collections.abc import Hashable, Sequence
from typing import Any, Final

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.callbacks import tagged
from llama_index_ralmspec.documents import nodes_of, passage_of
from ralmspec_plugins.adapters.fingerprint import is_known, qualified_name
from ralmspec_plugins.types import Hits, passages_of, same_to_read

_NODE: Final = "llama_index.core.postprocessor.node"
# The results of these depend only on the nodes: on no scores, question, model or clock.
_BLIND: Final = frozenset(
    {
        f"{_NODE}.KeywordNodePostprocessor",
        f"{_NODE}.PrevNextNodePostprocessor",
        "llama_index.core.postprocessor.metadata_replacement.MetadataReplacementPostProcessor",
        "llama_index.core.postprocessor.node_recency.FixedRecencyPostprocessor",
    }
)
# These also read scores, but compute none.
_SORTING: Final = frozenset({f"{_NODE}.LongContextReorder", f"{_NODE}.SimilarityPostprocessor"})
# These depend only on nodes, but are expensive or read a store: they are not run to compare.
_DEAR: Final = frozenset(
    {f"{_NODE}.KeywordNodePostprocessor", f"{_NODE}.PrevNextNodePostprocessor"}
)


class Postprocessing:
    """A sequence of node postprocessors."""

    def __init__(self, postprocessors: Sequence[BaseNodePostprocessor] = ()) -> None:
        """Create a sequence of these, in order."""
        self.postprocessors = postprocessors

    def run(self, nodes: list[NodeWithScore], bundle: QueryBundle) -> list[NodeWithScore]:
        """Return the processed nodes; the given ones may be modified."""
        for one in self.postprocessors:
            nodes = one.postprocess_nodes(nodes, query_bundle=bundle)
        return nodes

    async def arun(self, nodes: list[NodeWithScore], bundle: QueryBundle) -> list[NodeWithScore]:
        """Return the processed nodes, by the asynchronous methods."""
        for one in self.postprocessors:
            nodes = await one.apostprocess_nodes(nodes, query_bundle=bundle)
        return nodes

    @property
    def reads_scores(self) -> bool:
        """Whether a postprocessor may read scores."""
        return not all(name in _BLIND for name in self._names())

    @property
    def unknown(self) -> list[Any]:
        """The postprocessors that may use more than the nodes, such as a model or kept state."""
        pairs = zip(self.postprocessors, self._names(), strict=True)
        return [one for one, name in pairs if name not in _BLIND | _SORTING]

    def same(self, guess: Hits, truth: Hits) -> bool:
        """Return whether the same nodes result from both, regardless of their scores.

        Scores may differ if they do not affect the result: a right guess has the passages of the
        search, but its own scores.
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
        """Return the passages of the processed hits, or `None` after an error."""
        with tagged():
            try:
                nodes = self.run(nodes_of(hits), QueryBundle(""))
                return [passage_of(one.node) for one in nodes]
            except Exception:  # noqa: BLE001 the call itself raises it
                return None

    def _names(self) -> list[str]:
        """Return the class names of the postprocessors; "" for one with replaced methods."""
        named = [(one, qualified_name(type(one))) for one in self.postprocessors]
        return [name if is_known(one, {name}) else "" for one, name in named]


def valued(hits: Hits, *, scores: bool) -> Hashable:
    """Return a key of hits: of their passages, and of their scores if these are read."""
    return tuple(passages_of(hits)), tuple(hit.score for hit in hits) if scores else None
