"""Retriever tools for agents that can guess their results."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.tools import RetrieverTool, ToolMetadata, ToolOutput

from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.retriever import SpeculativeRetriever
from ralmspec_plugins.adapters.engines import OwnPool
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache


class SpeculativeRetrieverTool(RetrieverTool):
    """A retriever tool that can guess its results before its retriever has searched.

    It does not with postprocessors that may use more than the nodes, such as a model or kept
    state: a guess would use them twice.
    """

    read_only: Final = True

    async def aguess_call(self, call: Mapping[str, Any]) -> ToolOutput | None:
        """Return the expected result of a call, or `None`."""
        retriever = self.retriever
        assert isinstance(retriever, SpeculativeRetriever)
        if Postprocessing(self._node_postprocessors).unknown:
            return None
        query = "\n" + ", ".join(f"{key!s} is {value!s}" for key, value in call["args"].items())
        nodes = await retriever.aguess(f"{query}\n")
        if nodes is None:
            return None
        known = RetrieverTool(_FoundNodes(nodes), self.metadata, self._node_postprocessors)
        return await known.acall(**call["args"])


class _FoundNodes(BaseRetriever):
    """A retriever of given nodes."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self._nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes


def speculative_tool(
    retriever: Any,
    *,
    name: str = "retriever",
    description: str = "Finds passages by a natural-language query.",
    node_postprocessors: Sequence[Any] = (),
    memo: QueryCache | None = None,
    pool: SharedPassageCache | None = None,
    **options: Any,
) -> SpeculativeRetrieverTool:
    """Return a tool over a retriever that can guess its results.

    Args:
        retriever: a `SpeculativeRetriever`, or another retriever, which is wrapped in one.
        name: the name of the tool.
        description: the description of the tool for the model.
        node_postprocessors: the tool's node postprocessors, which run for guesses, too.
        memo: caches results, which are exact guesses.
        pool: collects the nodes found; the best of them are a guess. A new one by default, which
            is used over known classes only: a retriever of your own may read the current user
            where it cannot be seen.
        options: further arguments of the `SpeculativeRetriever`.

    Raises:
        TypeError: an argument is unknown.
        ConfigError: a value has another type.
    """
    for called, text in (("name", name), ("description", description)):
        if not isinstance(text, str):
            raise ConfigError(f"{called} must be a text, got {text!r}")
    given: Any = node_postprocessors
    if not isinstance(given, Sequence) or not all(
        isinstance(one, BaseNodePostprocessor) for one in given
    ):
        raise ConfigError(f"node_postprocessors must be a list of postprocessors, got {given!r}")
    if not isinstance(retriever, SpeculativeRetriever):
        pool = OwnPool() if pool is None else pool
        retriever = SpeculativeRetriever(retriever, memo=memo, pool=pool, **options)
    return SpeculativeRetrieverTool(
        retriever, ToolMetadata(description, name), list(node_postprocessors)
    )
