"""Values of any kind as bytes: one text for each value, whatever it is nested in."""

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import itertools
import pathlib
import sys
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from copy import deepcopy
from functools import cached_property, partial
from types import FunctionType, MethodType
from typing import Any, Final, TypeAlias

import numpy as np

Opaque: TypeAlias = Callable[[object], bytes]  # a name for an object whose value cannot be read
# What counts of an object, besides which one it is; `None` for one that is read as any other.
Read: TypeAlias = Callable[[object], Mapping[str, Any] | None]

# Immutable, and their repr says all that there is to them.
_BY_REPR = frozenset(
    {
        bool, int, complex, range, type(None), type(...),
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        decimal.Decimal, fractions.Fraction, uuid.UUID,
        pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
    }
)  # fmt: skip
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


@dataclasses.dataclass(frozen=True, slots=True)
class _Rules:
    opaque: Opaque
    most: int | None  # items of a container that is still looked into
    ordered: bool  # whether the order of a dictionary's keys counts
    read: Read


def as_any(value: object) -> None:
    """Read an object as any other."""


def canonical_bytes(
    value: object,
    opaque: Opaque,
    most: int | None = None,
    *,
    ordered: bool = False,
    read: Read = as_any,
) -> bytes:
    """Give the one text of a value: different values have different texts.

    Everything stands behind its type and its length, so nothing that one value
    contains can be taken for another one. Sets have no order, dictionaries only if asked.

    >>> canonical_bytes(["ab", "c"], lambda _: b"") == canonical_bytes(["a", "bc"], lambda _: b"")
    False

    Args:
        value: any.
        opaque: names what cannot be read.
        most: containers of more items are not looked into; `None`: all are.
        ordered: whether dictionaries of another order are other values.
        read: says what counts of objects that their caller knows better.
    """
    return _encoded(value, _Rules(opaque, most, ordered, read), ())


def _encoded(value: Any, rules: _Rules, inside: tuple[int, ...]) -> bytes:
    kind = type(value)
    if kind is str:
        return _part(b"str", [value.encode("utf-8", "surrogatepass")])
    if kind is bytes:
        return _part(b"bytes", [value])
    if kind is float:
        return _part(b"float", [value.hex().encode()])
    if kind in _BY_REPR:
        return _part(_name(kind), [repr(value).encode("utf-8", "surrogatepass")])
    if id(value) in inside:  # a container in itself: how far up says which
        return _part(b"cycle", [b"%d" % inside[::-1].index(id(value))])
    return _composite(value, rules, (*inside, id(value)))


def _composite(value: Any, rules: _Rules, inside: tuple[int, ...]) -> bytes:
    kind = type(value)
    if kind in _CONTAINERS and rules.most is not None and len(value) > rules.most:
        return _part(b"opaque " + _name(kind), [rules.opaque(value)])
    if kind in (list, tuple):
        return _part(_name(kind), (_encoded(item, rules, inside) for item in value))
    if kind in (set, frozenset):
        return _part(_name(kind), sorted(_encoded(item, rules, inside) for item in value))
    if kind is dict:
        return _part(b"dict", _pairs(value, rules, inside))
    if isinstance(value, np.ndarray | np.generic):
        return _array(value, rules, inside)
    known = rules.read(value)
    if known is not None:
        return _part(b"part " + _name(kind), [rules.opaque(value), *_pairs(known, rules, inside)])
    fields = _fields(value)
    if fields is not None:
        hidden = rules.opaque(value) if getattr(value, "__pydantic_private__", None) else b""
        parts = _pairs(fields, rules, inside)
        return _part(b"fields of " + rules.opaque(kind), [hidden, *parts])
    return _part(b"opaque " + _name(kind), [rules.opaque(value)])


def _pairs(mapping: Mapping[Any, Any], rules: _Rules, inside: tuple[int, ...]) -> list[bytes]:
    pairs = [
        _part(b"", [_encoded(key, rules, inside), _encoded(value, rules, inside)])
        for key, value in mapping.items()
    ]
    return pairs if rules.ordered else sorted(pairs)


def _array(value: Any, rules: _Rules, inside: tuple[int, ...]) -> bytes:
    kind = _name(type(value))
    if value.dtype.hasobject:
        return _part(kind, [b"object", _encoded(value.tolist(), rules, inside)])
    shape = repr(value.shape).encode()
    return _part(kind, [repr(value.dtype.descr).encode(), shape, value.tobytes()])


def _fields(value: Any) -> dict[str, Any] | None:
    """Read a record's content: a dataclass's, or a pydantic model's; `None` for other things.

    What a model keeps in private is its own affair (counters, caches, clients): with
    it, a model is named as an object besides.
    """
    if isinstance(value, type):
        return None
    own = dict(getattr(value, "__dict__", {}))
    if dataclasses.is_dataclass(value):
        listed = dataclasses.fields(value)
        own |= {one.name: getattr(value, one.name) for one in listed if hasattr(value, one.name)}
        return own
    if hasattr(type(value), "__pydantic_fields__"):
        if more := getattr(value, "__pydantic_extra__", None):
            own["__pydantic_extra__"] = more
        return own
    return None


def _name(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _part(kind: bytes, items: Iterable[bytes]) -> bytes:
    listed = list(items)
    lengths = b",".join(b"%d" % len(item) for item in listed)
    return b"%s(%s:%s)" % (kind, lengths, b"".join(listed))


# Names for live objects and values of any kind, fit to be parts of a retriever's signature.
#
# Caches are partitioned by what answers depend on. Hosts hold that in mutable
# dictionaries, filter objects, clients and functions; here it becomes a key.


_HELD: Final = 4096  # objects without weak references that are kept alive for their tokens


class _Tokens:
    """Numbers objects: one number each, and no number twice, however long the process lives."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # a garbage collection may come to `forget` under it
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}  # by id()
        self._held: OrderedDict[int, tuple[object, int]] = OrderedDict()  # the last used at the end

    def number(self, value: object) -> int:
        """Give an object's number."""
        with self._lock:
            known = self._seen.get(id(value))
            if known is not None and known[0]() is value:
                return known[1]
            try:
                return self._watch(value, id(value))
            except TypeError:  # it takes no weak references
                return self._hold(value)

    def _watch(self, value: object, key: int) -> int:
        def forget(ref: weakref.ref[Any]) -> None:
            with self._lock:
                known = self._seen.get(key)
                if known is not None and known[0] is ref:
                    del self._seen[key]

        ref = weakref.ref(value, forget)
        number = next(self._numbers)
        self._seen[key] = ref, number
        return number

    def _hold(self, value: object) -> int:
        """Keep the object, so that no other one gets its place in memory.

        One that is let go and comes again gets a new number: a cache misses, no more.
        """
        known = self._held.get(id(value))
        number = next(self._numbers) if known is None else known[1]
        self._held[id(value)] = value, number
        self._held.move_to_end(id(value))
        if len(self._held) > _HELD:
            self._held.popitem(last=False)
        return number


_tokens = _Tokens()


def object_id(value: object) -> str:
    """Name a live object: itself and no other, as long as the process lives.

    What is inside the object is not looked at: a store that gets new documents
    keeps its name.

    >>> store, other = {1}, {1}
    >>> object_id(store) == object_id(store), object_id(store) == object_id(other)
    (True, False)
    """
    if isinstance(value, MethodType):  # made anew at each look
        return f"{object_id(value.__self__)}.{object_id(value.__func__)}"
    return f"{type(value).__name__}#{_tokens.number(value)}"


def value_fingerprint(value: object, most: int | None = None, read: Read = as_any) -> bytes:
    """Give a key for a value as it is now: equal values, equal keys, and never otherwise.

    The order of dictionaries and sets does not count, types do: 1, 1.0, True and
    "1" are four things. Plain values, containers, arrays, dataclasses and pydantic
    models are taken by value; functions and all other objects by `object_id`.

    >>> one = value_fingerprint({"k": 4, "filter": {"user": 1}})
    >>> one == value_fingerprint({"filter": {"user": 1}, "k": 4})
    True
    >>> value_fingerprint(1) == value_fingerprint(True)
    False

    Args:
        value: any.
        most: containers of more items are taken by `object_id` too, where reading them all
            would take too long; `None`: all are read.
        read: says what counts of an object besides its token; `None` for what is read as above.
    """
    return canonical_bytes(value, _by_token, most, read=read)


def as_called(value: object) -> bytes:
    """Give a key for what a call brings: the order of dictionaries counts, a black box may read it.

    >>> as_called({"a": 1, "b": 2}) == as_called({"b": 2, "a": 1})
    False
    """
    return canonical_bytes(value, _by_token, ordered=True)


def _by_token(value: object) -> bytes:
    return object_id(value).encode()


# Knows classes of hosts by their qualified names, so that none has to be imported.


def qualified_name(kind: type) -> str:
    """Name a class by its module and its own name.

    >>> qualified_name(FunctionType)
    'builtins.function'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def class_names(instance: object) -> frozenset[str]:
    """Name an instance's class and all classes that it comes from."""
    return frozenset(qualified_name(kind) for kind in type(instance).__mro__)


def overridden(instance: object) -> bool:
    """Whether a method of the class is hidden by an attribute of the instance."""
    own = getattr(instance, "__dict__", {})
    return any(isinstance(getattr(type(instance), name, None), FunctionType) for name in own)


def is_known(value: object, names: Container[str]) -> bool:
    """Whether a value is of exactly a known class, with the methods that its package ships.

    The class must be the one that its module has under its name, and none of its methods
    replaced: neither on the instance, nor on the class or one that it comes from.

    >>> is_known(partial(print), {"functools.partial"}), is_known(partial(print), {"x.Other"})
    (True, False)

    Args:
        value: any.
        names: qualified names of classes, whose code is known.
    """
    kind = type(value)
    if qualified_name(kind) not in names or overridden(value):
        return False
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        return False
    return not patched(kind)


def patched(kind: type) -> bool:
    """Whether a method of a class, or of one that it comes from, was written elsewhere.

    >>> class Own:
    ...     def run(self) -> None: ...
    >>> patched(Own)
    False
    >>> Own.run = deepcopy
    >>> patched(Own)
    True
    """
    attributes_now = [dict(vars(parent)) for parent in kind.__mro__]
    known = _shipped.get(kind)
    if known is None or known[0] != attributes_now:
        known = _shipped[kind] = (attributes_now, _written_elsewhere(kind))
    return known[1]


def _written_elsewhere(kind: type) -> bool:
    packages = {parent.__module__.partition(".")[0] for parent in kind.__mro__}
    return any(
        home not in packages and home not in _MAKERS
        for parent in kind.__mro__
        for method in vars(parent).values()
        for home in _homes_of(method)
    )


# What was found out of a class, and the attributes that it and its parents had then.
_shipped: MutableMapping[type, tuple[list[dict[str, Any]], bool]] = weakref.WeakKeyDictionary()
# Packages whose decorators and metaclasses make methods of other packages' classes.
_MAKERS: Final = frozenset(
    {
        *("_collections_abc", "abc", "asyncio", "collections", "contextlib", "dataclasses"),
        *("deprecated", "enum", "functools", "typing", "typing_extensions", "warnings", "wrapt"),
        *("dataclasses_json", "langchain_core", "llama_index", "llama_index_instrumentation"),
        *("pydantic", "tenacity"),
    }
)


def _homes_of(method: object) -> Iterator[str]:
    """Name the top-level packages in which a method's functions were written.

    Decorators hold the function that they were given, and descriptors their functions.
    """
    for name in ("__func__", "fget", "fset", "func", "__wrapped__"):
        inner = getattr(method, name, None)
        if inner is not None and inner is not method:
            yield from _homes_of(inner)
    if isinstance(method, FunctionType):
        yield str(method.__globals__.get("__name__", "")).partition(".")[0]


def package_of(thing: Any) -> str:
    """Name the top-level package whose code this is: a function's own, or of an object's class.

    >>> package_of(package_of), package_of([])
    ('ralmspec_plugins', 'builtins')
    """
    while isinstance(thing, partial):
        thing = thing.func
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return str(named.__module__).partition(".")[0]


# Walks through what a host's object is made of: parts in parts, each once.


MOST: Final = 64  # items of a container that is looked into: an object's parts, not its documents
_DEEPEST: Final = 12  # parts in parts


def parts(
    whole: object,
    inside: Callable[[object], Iterable[object]],
    besides: tuple[type, ...] = (),
) -> Iterator[object]:
    """Walk through the parts of an object, itself first.

    Args:
        whole: the object.
        inside: lists what a part holds, one level down.
        besides: classes of what is no part, such as documents.
    """
    seen: set[int] = set()

    def walk(part: object, depth: int) -> Iterator[object]:
        if depth > _DEEPEST or id(part) in seen or isinstance(part, besides):
            return
        seen.add(id(part))
        yield part
        for inner in inside(part):
            yield from walk(inner, depth + 1)

    return walk(whole, 0)


def held(part: object) -> list[Any]:
    """List what a container or a pydantic model holds; nothing of a long one, or of any other.

    >>> held([1, {2}]), held({"a": 3}), held("text"), held(range(3)), held([0] * 1000)
    ([1, {2}], [3], [], [], [])
    """
    if isinstance(part, list | tuple | set | frozenset):
        return list(part) if len(part) <= MOST else []
    if isinstance(part, dict):
        return list(part.values()) if len(part) <= MOST else []
    return list(attributes(part).values()) if hasattr(type(part), "__pydantic_fields__") else []


def attributes(part: object) -> dict[str, Any]:
    """Give all attributes that an object has for itself; a pydantic model's private ones too.

    Those that its class computes of the others, when they are first wanted, are left out.

    >>> class Part:
    ...     def __init__(self) -> None:
    ...         self._k = 4
    >>> attributes(Part()), attributes("text")
    ({'_k': 4}, {})
    """
    kind = type(part)
    own = {
        name: value
        for name, value in getattr(part, "__dict__", {}).items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }
    own |= getattr(part, "__pydantic_extra__", None) or {}
    return own | (getattr(part, "__pydantic_private__", None) or {})


# Values that are data and nothing else: told from code, and copied quickly.


# Immutable; which of their methods are called depends on nobody.
_ATOMS: Final = frozenset(
    {
        str, bytes, int, float, complex, bool, type(None), type(...), range,
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        decimal.Decimal, uuid.UUID, pathlib.PurePosixPath, pathlib.PosixPath,
    }
)  # fmt: skip
_LISTS: Final = frozenset({list, tuple, set, frozenset})


class _OtherError(Exception):
    """A value holds something that only its own class can copy."""


def is_data(value: object, packages: Container[str] = ()) -> bool:
    """Say whether a value holds nothing that could do something, however deeply.

    What is not data (a function, an object of an unknown class) may read whose turn it
    is, in a `ContextVar`: it must be run in its caller's own context.

    >>> is_data({"user": ["ada", 1]}), is_data({"user": lambda: "ada"})
    (True, False)

    Args:
        value: any; one that contains itself is not data.
        packages: top-level packages whose enums and records (pydantic models) are data.
    """
    return _is_data(value, packages, ())


def _is_data(value: Any, packages: Container[str], inside: tuple[int, ...]) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if id(value) in inside:
        return False
    inside = (*inside, id(value))
    if kind in _LISTS:
        return all(_is_data(one, packages, inside) for one in value)
    if kind is dict:
        return all(
            _is_data(key, packages, inside) and _is_data(one, packages, inside)
            for key, one in value.items()
        )
    if kind is np.ndarray or (isinstance(value, np.generic) and kind.__module__ == "numpy"):
        return not value.dtype.hasobject and value.dtype.metadata is None
    if kind.__module__.partition(".")[0] not in packages or callable(value):
        return False
    if isinstance(value, enum.Enum):
        return True
    if not hasattr(kind, "__pydantic_fields__") or getattr(value, "__pydantic_private__", None):
        return False
    extra = getattr(value, "__pydantic_extra__", None) or {}
    return all(_is_data(one, packages, inside) for one in (*vars(value).values(), *extra.values()))


def copied(value: Any) -> Any:
    """Copy what `deepcopy` copies, several times faster where it is plain values in containers.

    >>> ours = {"tags": ["a"]}
    >>> theirs = copied(ours)
    >>> theirs == ours, theirs["tags"] is ours["tags"]
    (True, False)

    Raises:
        Exception: what `deepcopy` raises.
    """
    if type(value) in _ATOMS:
        return value
    try:
        return _copied(value, {})
    except (_OtherError, RecursionError):
        return deepcopy(value)


def copied_where_possible(value: Any) -> Any:
    """Copy all of a value that can be copied; the rest (a lock, a client) is shared.

    >>> import threading
    >>> ours = {"tags": ["a"], "lock": threading.Lock()}
    >>> theirs = copied_where_possible(ours)
    >>> theirs["tags"] is ours["tags"], theirs["lock"] is ours["lock"]
    (False, True)
    """
    with suppress(Exception):  # whatever the classes inside raise
        return copied(value)
    if type(value) is dict:
        return {key: copied_where_possible(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied_where_possible(one) for one in value)
    return value


def _copied(value: Any, made: dict[int, Any]) -> Any:
    kind = type(value)
    known = made.get(id(value))
    if known is not None:
        return known
    if kind is dict:
        pairs = made[id(value)] = {}
        for key, one in value.items():
            if type(key) not in _ATOMS:
                raise _OtherError(type(key).__name__)
            pairs[key] = one if type(one) in _ATOMS else _copied(one, made)
        return pairs
    if kind is list:
        items: list[Any] = []
        made[id(value)] = items
        items += [one if type(one) in _ATOMS else _copied(one, made) for one in value]
        return items
    if kind is tuple:
        return tuple(one if type(one) in _ATOMS else _copied(one, made) for one in value)
    raise _OtherError(kind.__name__)
