"""LangChain's documents as the core's passages, and back: copies both ways.

Hosts hand out the objects that they keep, and their users write into them. So
what is remembered here is a copy nobody else holds, and what is given out is a
copy of that copy.
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
    """Make the passage of a document; the document itself is not kept.

    Raises:
        InputError: it is no document.
    """
    if not isinstance(document, Document):
        raise InputError(
            f"a retriever must give LangChain documents, got {type(document).__name__}: "
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
    """Give a document of its own for a passage, of the class that the host gave.

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
    """Give documents of their own for the passages of these hits."""
    return [document_of(hit.passage) for hit in hits]


def copied(document: Document) -> Document:
    """Copy a document with all that is in it; what cannot be copied is shared, as the host does."""
    if type(document) is not Document:
        with suppress(Exception):  # a lock, a client, a generator in it
            return deepcopy(document)
    metadata = copied_where_possible(document.metadata)
    copy = document.model_copy()
    copy.__dict__["metadata"] = metadata  # not by name: it would count as set
    return copy


def _more(document: Document) -> tuple[type, dict[str, Any]]:
    """What a subclass adds to a document's value."""
    own: dict[str, Any] = {
        name: value for name, value in document.__dict__.items() if name not in _OWN_FIELDS
    }
    for name in ("__pydantic_extra__", "__pydantic_private__"):
        if rest := getattr(document, name, None):
            own[name] = rest
    return type(document), own
