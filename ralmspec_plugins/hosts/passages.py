"""A host's document as a passage: its value made a digest, its original kept for giving back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from ralmspec_plugins.hosts.canonical import encoded
from ralmspec_plugins.records import Passage


@dataclass(frozen=True, slots=True, eq=False)
class HostPassage(Passage):
    """A passage that stands for a document of the host.

    Two are equal when id, content and metadata are, by value and with their types
    (NaN equals NaN, arrays are compared whole). `source` is a private copy of the
    host's own object, and is never handed out itself.

    Make one with `host_passage`.
    """

    digest: str = field(default="", kw_only=True, repr=False)  # of all that counts for equality
    opaque: bool = field(default=False, kw_only=True, repr=False)  # the digest does not say all
    source: Any = field(default=None, compare=False, repr=False, kw_only=True)

    def __eq__(self, other: object) -> bool:
        """Compare by value; what cannot be compared is not equal."""
        if not isinstance(other, HostPassage):
            return NotImplemented
        if self.digest != other.digest:
            return False
        if not self.opaque:
            return True
        return _same(self.metadata, other.metadata) and _same(self.source, other.source)

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(self.digest)


def host_passage(
    *,
    id: str | None,  # noqa: A002 the record's own word
    text: str,
    metadata: Mapping[str, Any],
    source: Any,
    more: object = None,
) -> HostPassage:
    """Make the passage of a document.

    A document without an id gets one from its value, so that the same document is
    the same passage each time it is found.

    Args:
        id: the document's own id, if it has one.
        text: its content.
        metadata: by reference; belongs to `source`.
        source: a private copy of the host's document.
        more: what else counts for equality, such as the fields of a document's subclass.
    """
    unread: list[object] = []

    def name_only(value: object) -> bytes:
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}".encode()
        unread.append(value)
        return b""

    whole = encoded((id, text, metadata, more), name_only)
    digest = blake2b(whole, digest_size=16).hexdigest()
    return HostPassage(
        digest if id is None else id,
        text,
        metadata=metadata,
        digest=digest,
        opaque=bool(unread),
        source=source,
    )


def _same(ours: object, theirs: object) -> bool:
    try:
        return bool(ours == theirs)
    except Exception:  # noqa: BLE001 arrays among objects: an unknown value equals nothing
        return False
