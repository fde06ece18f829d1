"""Conversion of LangChain's documents to passages and back, by copies in both directions.

Hosts return the objects that they store, and users modify them. So a passage holds a
private copy of its document, and callers receive copies of that copy.
"""

from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from typing import Any

from langchain_core.documents import Document

from ralmspec_plugins.adapters.documents import HostPassage, host_passage
from ralmspec_plugins.adapters.fingerprint import copied_where_possible
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Hit, Passage

_OWN_FIELDS = ("id", "metadata", "page_content")


def passage_of(document: Document) -> HostPassage:
    """Return the passage of a document; the document itself is not kept.

    Raises:
        InputError: it is not a document.
    """
    if not isinstance(document, Document):
        raise InputError(
            f"a retriever must return LangChain documents, got {type(document).__name__}: "
            f"{document!r:.200}"
        )
    source = copied(document)
    return host_passage(
        id=source.id,
        text=source.page_content,
        metadata=source.metadata,
        source=source,
        more=None if type(source) is Document else _more(source),
    )


def document_of(passage: Passage) -> Document:
    """Return a new copy of a passage's document, of the class that the host returned.

    Raises:
        InputError: the passage was not made of a document.
    """
    source = getattr(passage, "source", None)
    if not isinstance(source, Document):
        raise InputError(
            f"the passage {passage.id!r} was not made of a LangChain document; "
            "passages of this package's own retrievers have none"
        )
    return copied(source)


def documents_of(hits: Iterable[Hit]) -> list[Document]:
    """Return new copies of the documents of these hits."""
    return [document_of(hit.passage) for hit in hits]


def copied(document: Document) -> Document:
    """Return a deep copy of a document; values that cannot be copied are shared."""
    if type(document) is not Document:
        with suppress(Exception):  # it contains a lock, a client or a generator
            return deepcopy(document)
    metadata = copied_where_possible(document.metadata)
    copy = document.model_copy()
    copy.__dict__["metadata"] = metadata  # setting the attribute would mark the field as set
    return copy


def _more(document: Document) -> tuple[type, dict[str, Any]]:
    """Return the class and the fields that a subclass adds to a document."""
    own: dict[str, Any] = {
        name: value for name, value in document.__dict__.items() if name not in _OWN_FIELDS
    }
    for name in ("__pydantic_extra__", "__pydantic_private__"):
        if rest := getattr(document, name, None):
            own[name] = rest
    return type(document), own
