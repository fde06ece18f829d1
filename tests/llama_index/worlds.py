"""Nodes, queries and embeddings for the tests: near ties, duplicates, odd texts."""

from functools import cache
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from pydantic import PrivateAttr

from tests.langchain.stores import worlds
from tests.langchain.stores.worlds import batches, questions

__all__ = ["WordEmbedding", "batches", "corpus", "questions"]


class WordEmbedding(BaseEmbedding):
    """Sums a fixed random vector for each word, so that shared words make texts similar.

    Queries get another vector than passages of the same text, as with some real models.
    """

    _words: worlds.WordEmbeddings = PrivateAttr()
    _asked: list[str] = PrivateAttr(default_factory=list)

    def __init__(self, dimension: int = 24, coarse: bool = False, **fields: Any) -> None:
        super().__init__(model_name="words", **fields)
        self._words = worlds.WordEmbeddings(dimension=dimension, coarse=coarse)

    @property
    def asked(self) -> list[str]:
        """The queries that it embedded."""
        return self._asked

    def _get_query_embedding(self, query: str) -> list[float]:
        self._asked.append(query)
        return self._words.embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._words.embed_documents([text])[0]


@cache
def _documents(size: int) -> tuple[Any, ...]:
    return tuple(worlds.corpus(size))


def corpus(size: int = 300) -> list[TextNode]:
    """Make nodes of which one in six repeats another's text, and some are odd."""
    return [
        TextNode(
            id_=f"00000000-0000-0000-0000-{number:012d}",  # Qdrant takes numbers and UUIDs only
            text=document.page_content[:20_000],
            metadata=dict(document.metadata),
            excluded_llm_metadata_keys=["number"] if number % 2 else [],
            relationships={
                NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"document-{number % 7}")
            },
        )
        for number, document in enumerate(_documents(size))
    ]
