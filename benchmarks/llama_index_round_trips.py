"""Count what reaches a vector store and a model when a LlamaIndex loop speculates.

What is counted, and over what, says `round_trips.py`; the store here is LlamaIndex'
`FaissVectorStore`, the loop `SpeculativeQueryEngine` with the "interval" workload. The
scores of the nodes are part of what must be equal.

    python benchmarks/llama_index_round_trips.py DATA \
        benchmarks/results/llama_index_round_trips.json
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import faiss
from llama_index.core import PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.base.response.schema import Response
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index_ralmspec import SpeculativeQueryEngine, register_batch_search
from llama_index_ralmspec.stores.faiss import faiss_search
from pydantic import PrivateAttr
from round_trips import (
    END,
    QUERY_WORDS,
    STEP_WORDS,
    STEPS,
    RemoteSearch,
    Wire,
    World,
    last_words,
    main,
)

from ralmspec_plugins.adapters.retriever_state import HostStats
from ralmspec_plugins.workloads import Interval

WANTED = 4.0
PROMPT = PromptTemplate(f"{{context_str}}{END}{{query_str}} ")


class KeptEmbedding(BaseEmbedding):
    """MiniLM's vectors."""

    encoder: Any

    def _get_query_embedding(self, query: str) -> list[float]:
        return list(self.encoder.vector(query))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)


class RemoteFaiss(FaissVectorStore):
    """FAISS behind a wire."""

    _wire: Wire = PrivateAttr()

    def __init__(self, wire: Wire, faiss_index: Any) -> None:
        super().__init__(faiss_index)
        self._wire = wire

    def query(self, *args: Any, **kwargs: Any) -> Any:
        self._wire.search()
        return super().query(*args, **kwargs)


class Articles(CustomLLM):
    """Goes on with the article that the prompt's question begins."""

    world: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="articles")

    @llm_completion_callback()
    def complete(
        self, prompt: str, formatted: bool = False, max_tokens: int = 0, **kwargs: Any
    ) -> CompletionResponse:
        return CompletionResponse(text=self.world.said(prompt, max_tokens))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


class NodeLoop:
    """The loop over a LlamaIndex retriever and model."""

    def __init__(self, retriever: BaseRetriever, llm: Articles) -> None:
        self._retriever = retriever
        self._llm = llm

    def by_hand(self, question: str) -> Any:
        text = ""
        used: dict[str, NodeWithScore] = {}
        for _ in range(STEPS):
            found = self._retriever.retrieve(last_words(question, text))
            for one in found:
                used.setdefault(one.node.node_id, one)
            context = "\n\n".join(one.node.get_content(MetadataMode.LLM) for one in found)
            prompt = PROMPT.format(context_str=context, query_str=question) + text
            text += self._llm.complete(prompt, formatted=True, max_tokens=STEP_WORDS).text
        return text, [one.model_dump() for one in used.values()]

    @contextmanager
    def ours(self, **chosen: Any) -> Iterator["NodeOurs"]:
        with SpeculativeQueryEngine.from_args(
            self._retriever,
            llm=self._llm,
            text_qa_template=PROMPT,
            workload=partial(Interval, interval=STEP_WORDS, query_tokens=QUERY_WORDS),
            bound="max_tokens",
            max_tokens=STEPS * STEP_WORDS,
            **chosen,
        ) as engine:
            yield NodeOurs(engine)


class NodeOurs:
    """`SpeculativeQueryEngine`."""

    def __init__(self, engine: SpeculativeQueryEngine) -> None:
        self._engine = engine

    @property
    def stats(self) -> HostStats:
        return self._engine.stats

    def answer(self, question: str) -> tuple[Any, Mapping[str, Any]]:
        response = self._engine.query(question)
        assert isinstance(response, Response)
        assert response.metadata is not None
        nodes = [one.model_dump() for one in response.source_nodes]
        return (response.response, nodes), response.metadata["ralmspec"]["stats"]


def loop_over(world: World, k: int) -> NodeLoop:
    """Put the passages into a store, and the loop over it."""
    register_batch_search(
        f"{RemoteFaiss.__module__}.{RemoteFaiss.__qualname__}",
        lambda retriever: (found := faiss_search(retriever)) and RemoteSearch(found, world.wire),
    )
    nodes = [
        TextNode(
            id_=row["id"],
            text=row["text"],
            metadata={"title": row["title"]},
            excluded_llm_metadata_keys=["title"],
            embedding=vector,
        )
        for row, vector in zip(world.rows, world.vectors, strict=True)
    ]
    store = RemoteFaiss(world.wire, faiss.IndexFlatIP(len(world.vectors[0])))
    index = VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=KeptEmbedding(encoder=world.encoder),
    )
    llm = Articles(world=world)
    return NodeLoop(index.as_retriever(similarity_top_k=k), llm)


if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], loop_over, WANTED))
