"""Retrievers: exact and approximate, dense and sparse, with one ranking rule."""

from ralmspec_plugins.retrieval.artifacts import save
from ralmspec_plugins.retrieval.builder import build_index
from ralmspec_plugins.retrieval.encoders import Encoder, HashingEncoder
from ralmspec_plugins.retrieval.ingest import read_passages, stream_passages
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.retrieval.registry import BACKENDS, KnowledgeBase, load, open_retriever

__all__ = [
    "BACKENDS",
    "Encoder",
    "HashingEncoder",
    "KnowledgeBase",
    "NumpyFlat",
    "build_index",
    "load",
    "open_retriever",
    "read_passages",
    "save",
    "stream_passages",
]
