"""BM25 by Lucene, with the jar of pyserini. Java starts with the first retriever."""

from ralmspec_plugins.retrieval.lucene.index import LuceneSettings
from ralmspec_plugins.retrieval.lucene.jvm import start_java
from ralmspec_plugins.retrieval.lucene.retriever import LuceneRetriever

__all__ = ["LuceneRetriever", "LuceneSettings", "start_java"]
