"""Retriever tools that guess: the host's tool, and no guess from another user."""

from contextvars import ContextVar
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool, ToolMetadata
from llama_index_ralmspec import speculative_tool

from ralmspec_plugins import SharedPassageCache
from ralmspec_plugins.errors import ConfigError

user = ContextVar("user", default="nobody")
CALL = {"name": "retriever", "args": {"q": "fox"}, "id": "1"}


class Secrets(BaseRetriever):
    """Finds what belongs to the current user."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=f"secret of {user.get()}"), score=1.0)]


class Numbers(BaseNodePostprocessor):
    """Writes into the nodes how often it was called."""

    calls: int = 0

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        self.calls += 1
        for one in nodes:
            one.node.set_content(f"{one.node.get_content()} seen {self.calls}")
        return nodes


def retriever() -> BaseRetriever:
    nodes = [TextNode(text=f"about {word}", id_=word) for word in ("fox", "owl", "elm")]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(8)).as_retriever()


async def test_what_one_user_found_is_no_guess_for_another() -> None:
    """Where code of a user's own decides what is found; a pool of the caller's is used."""
    alone, shared = speculative_tool(Secrets()), speculative_tool(Secrets(), pool=POOL)
    token = user.set("ann")
    found = (await alone.acall(q="fox")).content, (await shared.acall(q="fox")).content
    user.set("bob")
    guesses = await alone.aguess_call(CALL), await shared.aguess_call(CALL)
    user.reset(token)

    assert "secret of ann" in found[0]
    assert found[0] == found[1]
    assert guesses[0] is None
    assert guesses[1] is not None
    assert found[1] == guesses[1].content


POOL = SharedPassageCache()


async def test_postprocessors_that_keep_state_run_for_real_calls_only() -> None:
    """A guess would be one more call; those that only look at nodes run for guesses, too."""
    plain = RetrieverTool(retriever(), ToolMetadata("Finds.", "retriever"), [Numbers()])
    ours = speculative_tool(retriever(), node_postprocessors=[Numbers()])
    blind = speculative_tool(retriever(), node_postprocessors=[SimilarityPostprocessor()])
    expected, actual = [], []
    for word in ("fox", "owl", "fox"):
        call = {**CALL, "args": {"q": word}}
        assert await ours.aguess_call(call) is None
        expected.append((await plain.acall(q=word)).content)
        actual.append((await ours.acall(q=word)).content)
        await blind.acall(q=word)

    assert "seen 3" in expected[-1]
    assert expected == actual
    assert await blind.aguess_call(CALL) is not None


@pytest.mark.parametrize(
    "wrong", [{"name": 5}, {"node_postprocessors": [5]}, {"node_postprocessors": 5}, {"pool": 5}]
)
def test_arguments_are_checked_at_once(wrong: Any) -> None:
    """With what was got."""
    with pytest.raises(ConfigError, match="must be"):
        speculative_tool(retriever(), **wrong)
