"""LlamaIndex's nodes as passages and back: copies both ways, told apart by all that is in them."""

import threading
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    NodeWithScore,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index_ralmspec.documents import hits_of, node_of, nodes_of, passage_of
from pydantic import PrivateAttr

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Passage


class Annotated(TextNode):
    """Somebody's own kind of node."""

    page: int = 0
    _seen: list[int] = PrivateAttr(default_factory=list)


def whole(**changes: Any) -> TextNode:
    """Make a node with something in every field."""
    fields: dict[str, Any] = {
        "id_": "w",
        "text": "whole",
        "metadata": {"page": 1, "tags": ["a", {"b": [1]}], "none": None, "score": 0.5},
        "embedding": [0.25] * 24,
        "excluded_llm_metadata_keys": ["page"],
        "excluded_embed_metadata_keys": ["tags"],
        "relationships": {
            NodeRelationship.SOURCE: RelatedNodeInfo(
                node_id="d", node_type=ObjectType.DOCUMENT, metadata={"list": [1]}, hash="h"
            ),
            NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
        },
        "metadata_template": "{key}={value}",
        "metadata_separator": "; ",
        "text_template": "{metadata_str}: {content}",
        "mimetype": "text/markdown",
        "start_char_idx": 3,
        "end_char_idx": 9,
    }
    return TextNode(**{**fields, **changes})


RELATED = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d2")}
NODES: list[BaseNode] = [
    whole(),
    TextNode(text="plain", id_="p"),
    TextNode(text="", id_="empty", metadata={"Ελλάδα": "北京 🜲"}),
    Annotated(text="more", id_="m", page=3, metadata={"nested": {"list": [1]}}),
    Document(text="document", id_="d", metadata={"list": [1]}),
    ImageNode(text="image", id_="i", image="aGVsbG8=", metadata={"list": [1]}),
    IndexNode(text="index", id_="x", index_id="other", metadata={"list": [1]}),
    Node(
        id_="n",
        text_resource=MediaResource(text="node"),
        image_resource=MediaResource(data=b"aGVsbG8="),
        metadata={"list": [1]},
    ),
]
CHANGES: list[dict[str, Any]] = [
    {"id_": "other"},
    {"text": "other"},
    {"metadata": {"page": 1}},
    {"metadata": {"page": True, "tags": ["a", {"b": [1]}], "none": None, "score": 0.5}},
    {"metadata": {"page": 1, "tags": ["a", {"b": [1.0]}], "none": None, "score": 0.5}},
    {"metadata": {"none": None, "page": 1, "tags": ["a", {"b": [1]}], "score": 0.5}},
    {"embedding": None},
    {"embedding": [0.25] * 23 + [-0.25]},
    {"excluded_llm_metadata_keys": []},
    {"excluded_embed_metadata_keys": ["page"]},
    {"relationships": {}},
    {"relationships": RELATED},
    {"metadata_template": "{key}: {value}"},
    {"metadata_separator": "\n"},
    {"text_template": "{content}"},
    {"mimetype": "text/plain"},
    {"start_char_idx": None},
    {"end_char_idx": 10},
]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.class_name() + node.node_id)
def test_a_node_comes_back_as_it_was(node: BaseNode) -> None:
    """Class, every field, and what counts as set are the same."""
    back = node_of(passage_of(node))

    assert node == back
    assert type(back) is type(node)
    assert node.model_fields_set == back.model_fields_set


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.class_name() + node.node_id)
def test_whatever_is_done_to_nodes_the_passage_stays(node: BaseNode) -> None:
    """Neither what went in nor what came out has anything in common with what is kept."""
    given = node.model_copy(deep=True)
    passage = passage_of(given)
    came = node_of(passage)
    for one in (given, came):
        for value in vars(one).values():
            _poison(value)
        one.metadata["poison"] = True
        one.set_content("poison")

    assert node == node_of(passage)
    assert passage_of(node) == passage


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_field_counts(change: dict[str, Any]) -> None:
    """Nodes that anything could tell apart are different passages, others are equal."""
    assert passage_of(whole()) == passage_of(whole())
    assert hash(passage_of(whole())) == hash(passage_of(whole()))
    assert passage_of(whole()) != passage_of(whole(**change))


def test_a_subclass_is_another_node() -> None:
    """Class, fields and private values of a subclass count."""
    plain, page = TextNode(text="a", id_="1"), Annotated(text="a", id_="1", page=1)
    other, same = (Annotated(text="a", id_="1", page=number) for number in (2, 1))
    private = Annotated(text="a", id_="1", page=1)
    private._seen.append(1)

    assert passage_of(page) == passage_of(same)
    assert passage_of(page) != passage_of(plain)
    assert passage_of(page) != passage_of(other)
    assert passage_of(page) != passage_of(private)


def test_what_an_index_node_stands_for_is_shared() -> None:
    """A retriever or table behind a node is the host's own, and counts by identity."""
    table, other = {"rows": [1]}, {"rows": [1]}
    node = IndexNode(text="t", id_="1", index_id="t", obj=table)
    same = IndexNode(text="t", id_="1", index_id="t", obj=table)
    back = node_of(passage_of(node))

    assert isinstance(back, IndexNode)
    assert back.obj is node.obj
    assert passage_of(node) == passage_of(same)
    assert passage_of(node) != passage_of(IndexNode(text="t", id_="1", index_id="t", obj=other))


def test_what_cannot_be_copied_is_handed_on() -> None:
    """A lock in the metadata is the host's own, and the rest is copied all the same."""
    lock = threading.Lock()
    for kind in (TextNode, Annotated):
        node = kind(text="a", metadata={"lock": lock, "inside": [lock, {"a": [1]}]})
        passage = passage_of(node)
        node.metadata["inside"][1]["a"].append(2)

        assert node_of(passage).metadata == {"lock": lock, "inside": [lock, {"a": [1]}]}


def test_scores_go_with_hits() -> None:
    """Nodes of hits are fresh wrappers over fresh copies, with scores of the same type and bits."""
    given = [
        NodeWithScore(node=whole(), score=0.1 + 0.2),
        NodeWithScore(node=TextNode(text="b"), score=None),
        NodeWithScore(node=TextNode(text="c")),
    ]
    given[2].score = np.float32(0.1)
    hits = hits_of(given)
    back = nodes_of(hits)
    back[0].score = 7.0
    back[0].node.metadata.clear()

    assert given == nodes_of(hits)
    assert [type(one.score) for one in given] == [type(one.score) for one in nodes_of(hits)]


def test_what_is_no_node_is_refused() -> None:
    """The error says what came instead."""
    with pytest.raises(InputError, match="got dict"):
        passage_of({"text": "a"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not made of a LlamaIndex node"):
        node_of(Passage("p", "text"))


def _poison(value: Any) -> None:
    if isinstance(value, list):
        value.append("poison")
    elif isinstance(value, dict):
        for one in value.values():
            _poison(one)
        value["poison"] = "poison"
    elif isinstance(value, RelatedNodeInfo):
        _poison(value.metadata)


class Reasoned(NodeWithScore):
    """A node with a score, and why it was found."""

    why: list[str]


def test_what_stands_beside_a_score_is_kept() -> None:
    """Class and fields of a subclass come back, in copies; they count where hits are compared."""
    node = TextNode(id_="n", text="The fox is red.")
    given = Reasoned(node=node, score=0.5, why=["fox"])
    [hit] = hits_of([given])
    [other] = hits_of([Reasoned(node=node, score=0.5, why=["red"])])
    [plain] = hits_of([NodeWithScore(node=node, score=0.5)])
    given.why.append("changed")
    [back], [again] = nodes_of([hit]), nodes_of([hit])
    back.why.append("changed")  # type: ignore[attr-defined]

    assert Reasoned(node=node, score=0.5, why=["fox"]) == again
    assert type(again) is Reasoned
    assert again.node is not node
    assert hits_of([Reasoned(node=node, score=0.5, why=["fox"])]) == (hit,)
    assert hit.passage != other.passage
    assert hit != other
    assert hit != plain
