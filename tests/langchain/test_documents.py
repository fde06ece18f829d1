"""LangChain's documents as passages and back: copies both ways."""

import threading
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_ralmspec.documents import document_of, passage_of
from pydantic import PrivateAttr

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Passage


class Annotated(Document):
    """A host's own kind of document."""

    page: int = 0
    _seen: list[int] = PrivateAttr(default_factory=list)


def with_metadata(**metadata: Any) -> Document:
    return Document("text", metadata=metadata)


DOCUMENTS = [
    Document("plain"),
    Document("", id="empty"),
    Document("id", id="7", metadata={"source": "a", "page": 1, "score": 0.5, "none": None}),
    with_metadata(nested={"list": [1, {"a": (2, 3)}]}, tags={"a", "b"}),
    with_metadata(text="ünïcode 北京 🜲"),
    Annotated("more", id="m", page=3, metadata={"nested": [1]}),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.page_content or "-")
def test_a_document_comes_back_as_it_was(document: Document) -> None:
    """Class, id, content, metadata and what counts as set are the same."""
    back = document_of(passage_of(document))

    assert document == back
    assert type(back) is type(document)
    assert document.model_fields_set == back.model_fields_set


@pytest.mark.parametrize("document", DOCUMENTS[2:], ids=lambda document: document.page_content)
def test_whatever_is_done_to_documents_the_passage_stays(document: Document) -> None:
    """Neither what went in nor what came out has anything in common with what is kept."""
    given = document.model_copy(deep=True)
    passage = passage_of(given)
    came = document_of(passage)
    for one in (given, came):
        one.metadata["poison"] = True
        for value in one.metadata.values():
            if isinstance(value, dict):
                value["poison"] = True
            if isinstance(value, list):
                value.append("poison")
        one.page_content = "poison"

    assert document_of(passage) == document
    assert passage_of(document) == passage


def test_a_subclass_is_another_document() -> None:
    """Class, fields and private values of a subclass count."""
    plain, page = Document("a", id="1"), Annotated("a", id="1", page=1)
    other, same = Annotated("a", id="1", page=2), Annotated("a", id="1", page=1)
    private = Annotated("a", id="1", page=1)
    private._seen.append(1)

    assert passage_of(page) == passage_of(same)
    assert passage_of(page) != passage_of(plain)
    assert passage_of(page) != passage_of(other)
    assert passage_of(page) != passage_of(private)


def test_what_cannot_be_copied_is_handed_on() -> None:
    """A lock in the metadata is the host's own, and the rest is copied all the same."""
    lock = threading.Lock()
    document = with_metadata(lock=lock, inside=[lock, {"a": [1]}])
    passage = passage_of(document)
    document.metadata["inside"][1]["a"].append(2)
    back = document_of(passage)

    assert back.metadata == {"lock": lock, "inside": [lock, {"a": [1]}]}


def test_documents_without_ids_are_told_apart_by_value() -> None:
    """Two different ones have two ids, equal ones share one."""
    one, same, other = Document("a"), Document("a"), Document("a", metadata={"page": 1})

    assert passage_of(one).id == passage_of(same).id
    assert passage_of(one).id != passage_of(other).id
    assert document_of(passage_of(one)).id is None


def test_what_is_no_document_is_refused() -> None:
    """The error says what came instead."""
    with pytest.raises(InputError, match="got dict"):
        passage_of({"page_content": "a"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not made of a LangChain document"):
        document_of(Passage("p", "text"))
