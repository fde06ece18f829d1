"""The plain loop over LangChain's parts stays in the thread that asks."""

import sqlite3
from contextlib import closing
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.retrievers import BaseRetriever
from langchain_ralmspec import SpeculativeRAG


class Table(BaseRetriever):
    """Searches a table by a connection that is bound to its thread."""

    rows: Any

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [Document(row[0]) for row in self.rows.execute("select words from said")]


def test_a_retriever_may_be_bound_to_its_thread() -> None:
    """As in a chain of the host's own."""
    rows = sqlite3.connect(":memory:")
    rows.execute("create table said (words)")
    rows.execute("insert into said values ('The fox is red.')")
    rag = SpeculativeRAG(
        retriever=Table(rows=rows),
        llm=FakeListLLM(responses=["It is red."]),
        workload="one_shot",
        speculate=False,
    )
    with closing(rows), closing(rag):
        found = rag.invoke("What is red?")

    assert ["The fox is red."] == [document.page_content for document in found["context"]]
    assert "It is red." == found["answer"]
