"""LlamaIndex's nodes as the core's passages, and back: copies both ways.

Hosts hand out the nodes that they keep, and their users and postprocessors write into
them, scores included. So what is remembered here is a copy nobody else holds, and what
is given out is a copy of that copy.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final, TypeVar

from llama_index.core.schema import (
    BaseComponent,
    BaseNode,
    IndexNode,
    MetadataMode,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)

from ralmspec_plugins.adapters.documents import HostPassage, host_passage
from ralmspec_plugins.adapters.fingerprint import copied_where_possible, object_id
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Hit, Hits, Passage

ModelT = TypeVar("ModelT", bound=BaseComponent)

_OWN_FIELDS: Final = frozenset({"id_", "metadata", "text"})


def passage_of(node: BaseNode) -> HostPassage:
    """Make the passage of a node; the node itself is not kept.

    Two are equal when nothing can tell their nodes apart: class, id, content, metadata in
    their order, templates, excluded keys, relationships, embedding, and whatever a
    subclass adds.

    Raises:
        InputError: it is no node.
    """
    if not isinstance(node, BaseNode):
        raise InputError(
            f"a retriever must give LlamaIndex nodes, got {type(node).__name__}: {node!r:.200}"
        )
    source = copied(node)
    fields = source.__dict__
    return host_passage(
        id=source.node_id,
        text=fields["text"] if type(source) is TextNode else source.get_content(MetadataMode.NONE),
        metadata=source.metadata,
        source=source,
        more=_more(source),
        ordered=True,  # nodes show their metadata as they stand
    )


def node_of(passage: Passage) -> BaseNode:
    """Give a node of its own for a passage, of the class that the host gave.

    Raises:
        InputError: the passage was not made of a node.
    """
    source = getattr(passage, "source", None)
    if isinstance(source, NodeWithScore):
        source = source.node
    if not isinstance(source, BaseNode):
        raise InputError(
            f"the passage {passage.id!r} was not made of a LlamaIndex node; "
            "passages of this package's own retrievers have none"
        )
    return copied(source)


def hits_of(nodes: Iterable[NodeWithScore], features: Any = None) -> Hits:
    """Make the hits of nodes that a retriever gave, with their scores.

    What a subclass of the host's `NodeWithScore` adds belongs to the passage.
    """
    return tuple(Hit(_passage_with_score(one), one.score, features) for one in nodes)


def nodes_of(hits: Iterable[Hit]) -> list[NodeWithScore]:
    """Give nodes of their own, with their scores, for these hits."""
    return [_node_with_score(hit) for hit in hits]


def _passage_with_score(found: NodeWithScore) -> HostPassage:
    passage = passage_of(found.node)
    if type(found) is NodeWithScore:
        return passage
    source = _flat_copy(found)
    own = source.__dict__
    own["node"] = passage.source
    further = {name: own[name] for name in own.keys() - NodeWithScore.model_fields.keys()}
    return replace(passage, source=source, more=(passage.more, type(found), further))


def _node_with_score(hit: Hit) -> NodeWithScore:
    source = getattr(hit.passage, "source", None)
    if not isinstance(source, NodeWithScore):
        return scored(node_of(hit.passage), hit.score)
    made = _flat_copy(source)
    made.__dict__.update(node=node_of(hit.passage), score=hit.score)
    return made


def scored(node: BaseNode, score: float | None) -> NodeWithScore:
    """Put a node and a score together; a score stays of the type that it is."""
    made = NodeWithScore(node=node, score=score)
    if made.score is not score:  # somebody put another number there than the host's class makes
        made.score = score
    return made


def copied(node: BaseNode) -> BaseNode:
    """Copy a node with all that is in it; what cannot be copied is shared, as the host does.

    What an `IndexNode` stands for (a retriever, a query engine, a table) is no part of its
    value: it is shared.
    """
    if type(node) is TextNode:
        return _flat_copy(node)
    try:
        if isinstance(node, IndexNode) and node.obj is not None:
            return deepcopy(node, {id(node.obj): node.obj})
        return deepcopy(node)
    except Exception:  # noqa: BLE001 a lock, a client, a generator in it
        return _flat_copy(node)


def _flat_copy(model: ModelT) -> ModelT:
    """Copy a model of plain values; many times as fast as a deep copy of a model."""
    copy = model.model_copy()
    own = copy.__dict__  # not by name: a value that is set by name is validated anew
    for name, value in own.items():
        if name == "embedding" and type(value) is list:
            own[name] = list(value)
        elif name == "relationships":
            own[name] = {key: _related(one) for key, one in value.items()}
        elif type(value) is not str:
            own[name] = copied_where_possible(value)
    return copy


def _related(value: Any) -> Any:
    if type(value) is RelatedNodeInfo:
        return _flat_copy(value)
    return [_related(one) for one in value] if type(value) is list else value


def _more(node: BaseNode) -> tuple[type, Mapping[str, Any]]:
    """Give what makes a node's value besides id, content and metadata."""
    own = {name: value for name, value in node.__dict__.items() if name not in _OWN_FIELDS}
    if isinstance(node, IndexNode):
        own["obj"] = None if node.obj is None else object_id(node.obj)
    for name in ("__pydantic_extra__", "__pydantic_private__"):
        if rest := getattr(node, name, None):
            own[name] = rest
    return type(node), own
