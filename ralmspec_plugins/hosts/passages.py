"""A host's document as a passage: compared by value, its original kept for giving back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from ralmspec_plugins.hosts.canonical import encoded
from ralmspec_plugins.records import Passage

_SCALARS = frozenset({str, int, bool, type(None)})  # equal ones of one type are the same


@dataclass(frozen=True, slots=True, eq=False)
class HostPassage(Passage):
    """A passage that stands for a document of the host.

    Two are equal when id, content and metadata are, by value and with their types
    (NaN equals NaN, arrays are compared whole, keys have no order). What has no
    value that can be read must say itself that it is equal.

    `source` is a private copy of the host's own object, and is never handed out
    itself; `more` is what else counts, such as the fields of a document's subclass.
    Make one with `host_passage`.
    """

    source: Any = field(default=None, compare=False, repr=False, kw_only=True)
    more: Any = field(default=None, repr=False, kw_only=True)
    _digest: "Digest | None" = field(default=None, init=False, repr=False)  # made when asked for

    def __eq__(self, other: object) -> bool:
        """Compare by value; what cannot be compared is not equal."""
        if not isinstance(other, HostPassage):
            return NotImplemented
        if self is other:
            return True
        if self.id != other.id or self.text != other.text:
            return False
        if self.more is None and other.more is None and _plain(self.metadata, other.metadata):
            return True
        if self.digest != other.digest:
            return False
        return self.digest.whole or (
            _same(self.metadata, other.metadata) and _same(self.source, other.source)
        )

    def __hash__(self) -> int:
        """Hash by the parts that are always plain."""
        return hash((self.id, self.text))

    @property
    def digest(self) -> "Digest":
        """A short name for the passage's value."""
        if self._digest is None:
            found = digest_of(self.id, self.text, self.metadata, self.more)
            object.__setattr__(self, "_digest", found)
            return found
        return self._digest


@dataclass(frozen=True, slots=True)
class Digest:
    """A short name for a value; `whole` if equal names mean equal values."""

    text: str
    whole: bool


def digest_of(*values: object) -> Digest:
    """Make the digest of these values together, whatever they are nested of.

    >>> digest_of("a", {"page": 1}).text == digest_of("a", {"page": 1.0}).text
    False
    """
    unread: list[object] = []

    def name_only(value: object) -> bytes:
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}".encode()
        unread.append(value)
        return b""

    whole = encoded(values, name_only)
    return Digest(blake2b(whole, digest_size=16).hexdigest(), whole=not unread)


def host_passage(
    *,
    id: str | None,  # noqa: A002 the record's own word
    text: str,
    metadata: Mapping[str, Any],
    source: Any,
    more: Any = None,
) -> HostPassage:
    """Make the passage of a document.

    A document without an id gets one from its value, so that the same document is
    the same passage each time it is found.

    Args:
        id: the document's own id, if it has one.
        text: its content.
        metadata: by reference; it belongs to `source`.
        source: a private copy of the host's document.
        more: what else counts for equality.
    """
    if id is None:
        id = digest_of(None, text, metadata, more).text  # noqa: A001
    return HostPassage(id, text, metadata=metadata, source=source, more=more)


def _plain(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether both hold the same scalars; `False` also where that takes a closer look."""
    if len(ours) != len(theirs):
        return False
    for key, value in ours.items():
        if type(key) is not str or key not in theirs or type(value) not in _SCALARS:
            return False
        if type(value) is not type(theirs[key]) or value != theirs[key]:
            return False
    return True


def _same(ours: object, theirs: object) -> bool:
    try:
        return bool(ours == theirs)
    except Exception:  # noqa: BLE001 arrays among objects: an unknown value equals nothing
        return False
