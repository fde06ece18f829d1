"""A node deleted or replaced in its store: the next query sees it, with default settings."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import faiss
import pytest
from chromadb.config import Settings
from llama_index.core import VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from llama_index.vector_stores.milvus import MilvusVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever
from qdrant_client import QdrantClient, models

from tests.llama_index.conftest import indexed
from tests.llama_index.engine_parts import WordLLM, seen, seen_nodes
from tests.llama_index.worlds import WordEmbedding

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:table_names:DeprecationWarning"),
]
QUESTION = "river stone copper lantern orbit velvet"
OTHERS = ["comet harbour meadow", "signal amber falcon river"]
SIZE, DIMENSION = 60, 24
_names = itertools.count()


def chroma(_: Path) -> Any:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    collection = client.create_collection(f"fresh-llama-{next(_names)}", embedding_function=None)
    return ChromaVectorStore(chroma_collection=collection)


def qdrant(_: Path) -> Any:
    """Whole numbers: of others its local mode does not sum twice alike."""
    params = models.VectorParams(size=DIMENSION, distance=models.Distance.DOT)
    return QdrantVectorStore("fresh", client=QdrantClient(":memory:"), dense_config=params)


def milvus(folder: Path) -> Any:
    return MilvusVectorStore(
        uri=str(folder / "lite.db"),
        dim=DIMENSION,
        similarity_metric="L2",
        use_async_client=False,
        overwrite=True,
        consistency_level="Strong",
    )


STORES: dict[str, Callable[[Path], Any]] = {
    "simple": lambda _: SimpleVectorStore(),
    "faiss": lambda _: FaissVectorStore(faiss_index=faiss.IndexFlatL2(DIMENSION)),
    "chroma": chroma,
    "qdrant": qdrant,
    "lancedb": lambda folder: LanceDBVectorStore(uri=str(folder)),
    "milvus": milvus,
}


def deleted(index: VectorStoreIndex, node: TextNode) -> None:
    """Delete a node as far as its store can."""
    store: Any = index.vector_store
    if isinstance(store, LanceDBVectorStore):  # which does not quote ids
        store.table.delete(f"id = '{node.node_id}'")
        return
    if not isinstance(store, FaissVectorStore):
        index.delete_nodes([node.node_id], delete_from_docstore=True)
        return  # FAISS' store cannot: its index is filled anew, in place
    rest = [one for one in index.docstore.docs.values() if one.node_id != node.node_id]
    store.client.reset()
    index.index_struct.nodes_dict.clear()
    index.docstore.delete_document(node.node_id)
    index.insert_nodes(rest)


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one == "milvus")) for one in STORES]
)
def test_the_next_query_finds_what_the_store_holds_now(name: str, tmp_path: Path) -> None:
    """One deleted, one replaced: nodes and responses are those of the host's own engine."""
    embedding = WordEmbedding(coarse=name == "qdrant")
    index = indexed(STORES[name](tmp_path), SIZE, embedding)
    retriever = VectorIndexRetriever(index, embed_model=embedding, similarity_top_k=4)
    host = RetrieverQueryEngine.from_args(retriever, llm=WordLLM(window=200_000))
    ours = SpeculativeQueryEngine.wrap(host)
    sooner = SpeculativeRetriever(retriever)

    def asked() -> list[NodeWithScore]:
        """Ask in all ways, and compare with the host; give what the first query finds."""
        questions = [QUESTION, *OTHERS]
        found = [retriever.retrieve(one) for one in questions]
        given = sooner.retrieve_batch(questions)

        assert seen_nodes(sooner.retrieve(QUESTION)) == seen_nodes(found[0])
        assert [*map(seen_nodes, given)] == [*map(seen_nodes, found)]
        for one in questions:
            assert seen(ours.query(one)) == seen(host.query(one))
        return found[0]

    first = asked()
    deleted(index, first[0].node)
    second = asked()
    changed = TextNode(id_=second[0].node.node_id, text=f"{QUESTION} anew")
    deleted(index, second[0].node)
    index.insert_nodes([changed])
    third = asked()
    ours.close()
    sooner.close()

    gone = first[0].node.node_id
    assert gone not in [one.node.node_id for one in [*second, *third]]
    assert second[0].text not in [one.text for one in third]
    assert changed.text in [one.text for one in third]
