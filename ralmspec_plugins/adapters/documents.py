"""A host's document as a passage, compared by value, with a copy of the original."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from ralmspec_plugins.adapters.fingerprint import canonical_bytes
from ralmspec_plugins.types import Passage

_SCALARS = frozenset({str, int, bool, type(None)})  # equal values of one type are interchangeable
_LONG = 16  # a list of this length may be an embedding


@dataclass(frozen=True, slots=True, eq=False)
class HostPassage(Passage):
    """A passage that represents a document of the host.

    Two are equal if id, content and metadata are equal, by value and type
    (NaN equals NaN, arrays are compared as a whole). Opaque objects are compared by their
    own `__eq__`.

    `source` is a private copy of the host's object, which is copied again before it is
    returned; `more` has other relevant values, such as the fields of a document's subclass.
    `ordered`: the order of keys is relevant, as for a host that renders metadata in order.
    Create one with `host_passage`.
    """

    source: Any = field(default=None, compare=False, repr=False, kw_only=True)
    more: Any = field(default=None, repr=False, kw_only=True)
    ordered: bool = field(default=False, repr=False, kw_only=True)
    _digest: "Digest | None" = field(default=None, init=False, repr=False)  # computed on first use

    def __eq__(self, other: object) -> bool:
        """Compare by value; incomparable values are not equal."""
        if not isinstance(other, HostPassage):
            return NotImplemented
        if self is other:
            return True
        if self.id != other.id or self.text != other.text or self.ordered != other.ordered:
            return False
        if _plainly(self, other):
            return True
        if self.digest != other.digest:
            return False
        return self.digest.whole or (
            _same(self.metadata, other.metadata) and _same(self.source, other.source)
        )

    def __hash__(self) -> int:
        """Hash the fields that are always plain."""
        return hash((self.id, self.text))

    @property
    def digest(self) -> "Digest":
        """The digest of the passage's value."""
        if self._digest is None:
            values = self.id, self.text, self.metadata, self.more
            found = digest_of(*values, ordered=self.ordered)
            object.__setattr__(self, "_digest", found)
            return found
        return self._digest


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest of a value; `whole` if equal digests imply equal values."""

    text: str
    whole: bool


def digest_of(*values: object, ordered: bool = False) -> Digest:
    """Return the digest of these values together, nested or not.

    >>> digest_of("a", {"page": 1}).text == digest_of("a", {"page": 1.0}).text
    False
    """
    unread: list[object] = []

    def name_only(value: object) -> bytes:
        if type(value) is type or issubclass(type(value), type):
            named: Any = value
            return f"{named.__module__}.{named.__qualname__}".encode()
        unread.append(value)
        return b""

    each = [canonical_bytes(value, name_only, ordered=ordered) for value in values]
    whole = canonical_bytes(each, name_only)
    return Digest(blake2b(whole, digest_size=16).hexdigest(), whole=not unread)


def host_passage(
    *,
    id: str | None,  # noqa: A002 the name of the field
    text: str,
    metadata: Mapping[str, Any],
    source: Any,
    more: Any = None,
    ordered: bool = False,
) -> HostPassage:
    """Return the passage of a document.

    A document without an id gets one from its value, so that the same document
    always becomes the same passage.

    Args:
        id: the document's own id, if it has one.
        text: its content.
        metadata: by reference; it belongs to `source`.
        source: a private copy of the host's document.
        more: other values that are relevant for equality.
        ordered: whether the order of keys is relevant.
    """
    if id is None:
        id = digest_of(None, text, metadata, more, ordered=ordered).text  # noqa: A001
    return HostPassage(id, text, metadata=metadata, source=source, more=more, ordered=ordered)


def _plainly(ours: HostPassage, theirs: HostPassage) -> bool:
    try:
        return _alike(ours.metadata, theirs.metadata) and _alike(ours.more, theirs.more)
    except RecursionError:  # a value that contains itself
        return False


def _alike(ours: Any, theirs: Any) -> bool:
    """Return whether both are the same plain values in the same order.

    `False` may also mean undecided. Only values of the same type are compared, and 0.0 differs
    from -0.0.
    """
    kind = type(ours)
    if ours is theirs:
        return True
    if kind is not type(theirs):
        return False
    if kind in _SCALARS:
        return bool(ours == theirs)
    if kind is float:
        return bool(ours == theirs) and math.copysign(1, ours) == math.copysign(1, theirs)
    if kind in (list, tuple):
        return len(ours) == len(theirs) and (
            _same_floats(ours, theirs) or all(map(_alike, ours, theirs))
        )
    if kind is dict:
        return _alike(list(ours), list(theirs)) and _alike(
            list(ours.values()), list(theirs.values())
        )
    return _plain_record(kind) and _alike(vars(ours), vars(theirs)) and _nothing_else(ours, theirs)


def _same_floats(ours: Any, theirs: Any) -> bool:
    """Return whether both are equal lists of floats: a fast path for embeddings."""
    return (
        len(ours) > _LONG
        and {*map(type, ours), *map(type, theirs)} == {float}
        and bool(ours == theirs)
        and 0.0 not in ours
    )


def _plain_record(kind: type) -> bool:
    """Return whether instances of this class consist of their fields only: a pydantic model."""
    return hasattr(kind, "__pydantic_fields__")


def _nothing_else(*models: Any) -> bool:
    names = "__pydantic_private__", "__pydantic_extra__"
    return not any(getattr(model, name, None) for model in models for name in names)


def _same(ours: object, theirs: object) -> bool:
    try:
        return bool(ours == theirs)
    except Exception:  # noqa: BLE001 arrays among objects: an incomparable value equals nothing
        return False
