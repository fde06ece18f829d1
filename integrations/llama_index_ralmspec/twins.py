"""A retriever that tells what another one tells, and finds what it is given."""

from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any, TypeAlias

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

from llama_index_ralmspec.unawaited import unawaited

Find: TypeAlias = Callable[[bool], Coroutine[Any, Any, list[NodeWithScore]]]


def twin(retriever: BaseRetriever, find: Find) -> Any:
    """Make a retriever that tells what this one tells, and finds what it is given.

    Args:
        retriever: the host's.
        find: gives the nodes, and tells what is told of inside; is given whether it may wait.
    """
    made = object.__new__(type(retriever))
    made.__dict__.update(retriever.__dict__)

    # With the host's own names and arguments, which stand in its spans.
    def _retrieve(self: Any, query_bundle: QueryBundle) -> list[NodeWithScore]:  # noqa: ARG001
        return unawaited(find(False))

    async def _aretrieve(  # what is found is there already
        self: Any,  # noqa: ARG001
        query_bundle: QueryBundle,  # noqa: ARG001
    ) -> list[NodeWithScore]:
        return await find(True)

    made.__dict__["_retrieve"] = _as_told(retriever, MethodType(_retrieve, made))
    if type(retriever)._aretrieve is not BaseRetriever._aretrieve:  # noqa: SLF001
        made.__dict__["_aretrieve"] = _as_told(retriever, MethodType(_aretrieve, made))
    # It has been looked into and freed of duplicates.
    made.__dict__["_handle_recursive_retrieval"] = _as_they_are
    made.__dict__["_ahandle_recursive_retrieval"] = _aas_they_are
    return made


def _as_told(retriever: BaseRetriever, method: MethodType) -> Any:
    """Put a span around a method if the host's own of this name has one.

    Of a user's class `_retrieve` has, and `_aretrieve` only where its author gave it one.
    """
    own = getattr(type(retriever), method.__name__)
    if not hasattr(own, DISPATCHER_SPAN_DECORATED_ATTR):
        return method
    return get_dispatcher(type(retriever).__module__).span(method)


def _as_they_are(
    query_bundle: QueryBundle,  # noqa: ARG001
    nodes: list[NodeWithScore],
) -> list[NodeWithScore]:
    return nodes


async def _aas_they_are(
    query_bundle: QueryBundle,  # noqa: ARG001
    nodes: list[NodeWithScore],
) -> list[NodeWithScore]:
    return nodes
