"""Conversion of LlamaIndex' nodes to passages and back, by copies in both directions.

Hosts return the nodes that they store, and users and postprocessors modify them, scores
included. So a passage holds a private copy of its node, and callers receive copies of
that copy.
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
    """Return the passage of a node; the node itself is not kept.

    Two passages are equal if everything in their nodes is: class, id, content, metadata in
    order, templates, excluded keys, relationships, embedding, and all that a subclass adds.

    Raises:
        InputError: it is not a node.
    """
    if not isinstance(node, BaseNode):
        raise InputError(
            f"a retriever must return LlamaIndex nodes, got {type(node).__name__}: {node!r:.200}"
        )
    source = copied(node)
    fields = source.__dict__
    return host_passage(
        id=source.node_id,
        text=fields["text"] if type(source) is TextNode else source.get_content(MetadataMode.NONE),
        metadata=source.metadata,
        source=source,
        more=_more(source),
        ordered=True,  # nodes format their metadata in order
    )


def node_of(passage: Passage) -> BaseNode:
    """Return a new copy of a passage's node, of the class that the host returned.

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
    """Return the hits of a retriever's nodes, with their scores.

    Fields that a subclass of the host's `NodeWithScore` adds belong to the passage.
    """
    return tuple(Hit(_passage_with_score(one), one.score, features) for one in nodes)


def nodes_of(hits: Iterable[Hit]) -> list[NodeWithScore]:
    """Return new copies of the nodes of these hits, with their scores."""
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
    """Return a node with a score, whose type is kept."""
    made = NodeWithScore(node=node, score=score)
    if made.score is not score:  # the host's class has converted it
        made.score = score
    return made


def copied(node: BaseNode) -> BaseNode:
    """Return a deep copy of a node; values that cannot be copied are shared, as in the host.

    The object of an `IndexNode` (a retriever, a query engine, a table) is not part of its
    value and is shared.
    """
    if type(node) is TextNode:
        return _flat_copy(node)
    try:
        if isinstance(node, IndexNode) and node.obj is not None:
            return deepcopy(node, {id(node.obj): node.obj})
        return deepcopy(node)
    except Exception:  # noqa: BLE001 it contains a lock, a client or a generator
        return _flat_copy(node)


def _flat_copy(model: ModelT) -> ModelT:
    """Return a copy of a model of plain values; many times faster than a deep copy."""
    copy = model.model_copy()
    own = copy.__dict__  # setting an attribute would validate its value again
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
    """Return the class and the fields of a node besides id, content and metadata."""
    own = {name: value for name, value in node.__dict__.items() if name not in _OWN_FIELDS}
    if isinstance(node, IndexNode):
        own["obj"] = None if node.obj is None else object_id(node.obj)
    for name in ("__pydantic_extra__", "__pydantic_private__"):
        if rest := getattr(node, name, None):
            own[name] = rest
    return type(node), own
