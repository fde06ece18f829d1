"""LangChain's own standard tests for retrievers, over real stores."""

import itertools
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_community.vectorstores import FAISS, LanceDB
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_ralmspec.retriever import SpeculativeRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from tests.langchain.stores.worlds import WordEmbeddings, corpus

_names = itertools.count()


class OverAStore(RetrieversIntegrationTests):
    """The suite as it is; a subclass says over which store."""

    @staticmethod
    def store(folder: Path) -> VectorStore:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self._folder = tmp_path

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return SpeculativeRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.store(self._folder).as_retriever()}

    @property
    def retriever_query_example(self) -> str:
        return "river stone copper"


class TestOverFaiss(OverAStore):
    """FAISS."""

    @staticmethod
    def store(_: Path) -> VectorStore:
        return FAISS.from_documents(corpus(40), WordEmbeddings())


class TestOverChroma(OverAStore):
    """Chroma, embedded."""

    @staticmethod
    def store(_: Path) -> VectorStore:
        client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
        store = Chroma(f"standard-{next(_names)}", WordEmbeddings(), client=client)
        store.add_documents(corpus(40))
        return store


class TestOverLanceDB(OverAStore):
    """LanceDB, on disk."""

    @staticmethod
    def store(folder: Path) -> VectorStore:
        store = LanceDB(uri=str(folder), embedding=WordEmbeddings())
        store.add_documents(corpus(40))
        return store
