"""Fingerprints: canonical bytes of values, and ids of objects, for keys of caches."""

import inspect
import itertools
import operator
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from functools import cached_property, partial
from types import FunctionType, MethodType
from typing import Any, Final, TypeAlias

from ralmspec_plugins.adapters.plain_data import (
    LISTS,
    Slots,
    is_array,
    is_atom,
    package_name,
    slots_of,
    state,
)
from ralmspec_plugins.adapters.plain_data import copied as copied
from ralmspec_plugins.adapters.plain_data import copied_where_possible as copied_where_possible
from ralmspec_plugins.adapters.plain_data import is_data as is_data

Opaque: TypeAlias = Callable[[object], bytes]  # returns an id of an unreadable object
# Returns the relevant value of an object, besides its id; `None` for a generic object.
Read: TypeAlias = Callable[[object], Mapping[str, Any] | None]

_STORED: Final = (dict, list, tuple, set, frozenset)  # of documents, ids and vectors
_HEAP_TYPE: Final = 1 << 9  # flag of classes created by a class statement
_DEEPEST_READ: Final = 64  # maximum nesting of containers
_MOST_READ: Final = 20_000  # maximum number of containers in one value, with repetitions


def canonical_bytes(
    value: object,
    opaque: Opaque,
    most: int | None = None,
    *,
    ordered: bool = False,
    read: Read | None = None,
    unread: Opaque | None = None,
) -> bytes:
    """Return the canonical bytes of a value: different values have different bytes.

    Each item is preceded by its type and its length, so that the encoding is
    unambiguous. The order of sets is ignored, that of dictionaries unless `ordered`.
    No error is raised, whatever the value's classes do.

    >>> canonical_bytes(["ab", "c"], lambda _: b"") == canonical_bytes(["a", "bc"], lambda _: b"")
    False

    Args:
        value: any value.
        opaque: returns the id of an object without a readable value.
        most: containers of more items are opaque; `None`: there is no limit.
        ordered: whether the order of dictionaries is relevant.
        read: returns the relevant value of objects that the caller knows.
        unread: returns the id of a value that is too deep, too large, or raises;
            `opaque` by default.
    """
    writer = _ValueWriter(opaque, most, ordered, read, unread or opaque)
    try:
        return writer.written(value)
    except Exception:  # noqa: BLE001 code of a class raised, or the recursion limit was reached
        return writer.unread(value)


class _ValueWriter:
    """Writes the canonical bytes of one value."""

    def __init__(
        self, opaque: Opaque, most: int | None, ordered: bool, read: Read | None, unread: Opaque
    ) -> None:
        self._opaque = opaque
        self._most = most
        self._ordered = ordered
        self._read = read
        self._unread = unread
        self._inside: list[int] = []  # the enclosing containers, by id()
        self._left = _MOST_READ
        self._records: dict[int, _Record | None] = {}  # by id() of classes, which may change later
        self._texts: dict[str, bytes] = {}  # keys: records of one class have the same ones

    def unread(self, value: object) -> bytes:
        return _part(b"unread", [self._unread(value)])

    def written(self, value: Any) -> bytes:
        kind = type(value)
        if kind is str:
            return _leaf(b"str", value.encode("utf-8", "surrogatepass"))
        if kind is bytes:
            return _leaf(b"bytes", value)
        if kind is float:
            return _leaf(b"float", value.hex().encode())
        if kind is int:
            return _leaf(b"int", b"%x" % value)  # a repr of many digits raises
        if value is None:
            return _NONE
        if is_atom(value):
            return _leaf(_name(kind), repr(value).encode("utf-8", "surrogatepass"))
        if id(value) in self._inside:  # a container in itself, identified by its depth
            return _part(b"cycle", [b"%d" % self._inside[::-1].index(id(value))])
        self._left -= 1
        if len(self._inside) >= _DEEPEST_READ or self._left < 0:
            return self.unread(value)
        self._inside.append(id(value))
        text = self._composite(value, kind)
        self._inside.pop()
        return text

    def _composite(self, value: Any, kind: type) -> bytes:
        container = kind is dict or kind in LISTS
        if container and self._most is not None and len(value) > self._most:
            return self._named(value, kind)
        if kind is dict:
            return _part(b"dict", self._pairs(value))
        if container:
            items = [self.written(item) for item in list(value)]
            return _part(_name(kind), items if kind in (list, tuple) else sorted(items))
        if is_array(value):
            return self._array(value, kind)
        known = None if self._read is None else self._read(value)
        if known is not None:
            return _part(b"part " + _name(kind), [self._opaque(value), *self._pairs(known)])
        record = self._record(kind)
        if record is None:
            return self._named(value, kind)
        hidden = self._opaque(value) if getattr(value, "__pydantic_private__", None) else b""
        return _part(record.name, [hidden, *self._pairs(record.fields(value))])

    def _record(self, kind: type) -> "_Record | None":
        if id(kind) not in self._records:
            self._records[id(kind)] = _Record(kind, self._opaque) if _is_record(kind) else None
        return self._records[id(kind)]

    def _named(self, value: Any, kind: type) -> bytes:
        return _part(b"opaque " + _name(kind), [self._opaque(value)])

    def _pairs(self, mapping: Mapping[Any, Any]) -> list[bytes]:
        pairs: list[bytes] = []
        for name, item in list(mapping.items()):
            key, value = self._key(name), self.written(item)
            pairs.append(b"(%d,%d:%s%s)" % (len(key), len(value), key, value))
        return pairs if self._ordered else sorted(pairs)  # each is a part without a type

    def _key(self, name: Any) -> bytes:
        if type(name) is not str:
            return self.written(name)
        key = self._texts.get(name)
        if key is None:
            key = self._texts[name] = self.written(name)
        return key

    def _array(self, value: Any, kind: type) -> bytes:
        shape = repr(value.shape).encode()
        if value.dtype.hasobject:
            return _part(_name(kind), [b"object", shape, self.written(value.tolist())])
        return _part(_name(kind), [repr(value.dtype.descr).encode(), shape, value.tobytes()])


def _is_record(kind: type) -> bool:
    """Return whether the instances of a class have fields: a dataclass or a pydantic model.

    A record that is also a dictionary, a text or similar is not supported.
    """
    if not (hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__")):
        return False
    return all(base.__flags__ & _HEAP_TYPE for base in kind.__mro__[:-1])


class _Record:
    """Reads the fields of a class's instances.

    Private attributes of a model (counters, caches, clients) are not readable: a model with
    such attributes is identified by its id in addition.

    Raises:
        TypeError: the class hides the attributes of its instances.
    """

    def __init__(self, kind: type, opaque: Opaque) -> None:
        self.name = b"fields of " + opaque(kind)
        self._slots: Slots = slots_of(kind)
        declared: Iterable[str] = getattr(kind, "__dataclass_fields__", ())
        self._defaults = {
            name: getattr(kind, name) for name in declared if hasattr(kind, name)
        }  # in the class only, where an instance has none of its own

    def fields(self, value: Any) -> dict[str, Any]:
        own = state(value, self._slots)
        if self._defaults:
            own = own | {name: one for name, one in self._defaults.items() if name not in own}
        if more := getattr(value, "__pydantic_extra__", None):
            own["__pydantic_extra__"] = more
        return own


def _name(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _part(kind: bytes, items: Sequence[bytes]) -> bytes:
    lengths = ",".join([str(len(item)) for item in items]).encode()
    return b"%s(%s:%s)" % (kind, lengths, b"".join(items))


def _leaf(kind: bytes, item: bytes) -> bytes:
    """Return a part of one item, faster."""
    return b"%s(%d:%s)" % (kind, len(item), item)


_NONE: Final = _leaf(_name(type(None)), b"None")


# Ids of live objects and fingerprints of values, as parts of a retriever's signature.
#
# Caches are partitioned by all that answers depend on. Hosts store that in mutable
# dictionaries, filter objects, clients and functions; here it becomes a key.


_HELD: Final = 4096  # objects without weak references that are kept alive for their ids


class _Tokens:
    """Assigns each object a number that is unique in the process's lifetime."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # garbage collection may call `forget` under the lock
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}  # by id()
        self._held: OrderedDict[int, tuple[object, int]] = OrderedDict()  # the last used at the end

    def number(self, value: object) -> int:
        """Return an object's number."""
        with self._lock:
            known = self._seen.get(id(value))
            if known is not None and known[0]() is value:
                return known[1]
            try:
                return self._watch(value, id(value))
            except TypeError:  # it does not support weak references
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
        """Keep the object alive, so that its address is not reused.

        An evicted object gets a new number on its next use: this only causes a cache miss.
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
    """Return an id of a live object that is unique in the process's lifetime.

    The content of the object is ignored: a store that gets new documents
    keeps its id.

    >>> store, other = {1}, {1}
    >>> object_id(store) == object_id(store), object_id(store) == object_id(other)
    (True, False)
    """
    if type(value) is MethodType:  # a new object at each access
        return f"{object_id(value.__self__)}.{object_id(value.__func__)}"
    return f"{type(value).__name__}#{_tokens.number(value)}"


def value_fingerprint(value: object, most: int | None = None, read: Read | None = None) -> bytes:
    """Return a key of the current value: keys are equal if and only if values are.

    The order of dictionaries and sets is ignored, types are relevant: 1, 1.0, True and
    "1" are four different values. Plain values, containers, arrays, dataclasses and pydantic
    models are compared by value; functions and all other objects by `object_id`. A value that
    cannot be read completely (too deep, too large, a class that raises) has a new key each
    time: it shares nothing.

    >>> one = value_fingerprint({"k": 4, "filter": {"user": 1}})
    >>> one == value_fingerprint({"filter": {"user": 1}, "k": 4})
    True
    >>> value_fingerprint(1) == value_fingerprint(True)
    False

    Args:
        value: any value.
        most: containers of more items are compared by `object_id`, too, where reading them
            would take too long; `None`: there is no limit.
        read: returns the relevant value of an object besides its id; `None` for a generic one.
    """
    return canonical_bytes(value, _by_token, most, read=read, unread=_unlike_any)


def as_called(value: object) -> bytes:
    """Return a key of a call's arguments, with the order of dictionaries, which may be read.

    >>> as_called({"a": 1, "b": 2}) == as_called({"b": 2, "a": 1})
    False
    """
    return canonical_bytes(value, _by_token, ordered=True, unread=_unlike_any)


def _by_token(value: object) -> bytes:
    return object_id(value).encode()


_unlike = itertools.count()


def _unlike_any(_: object) -> bytes:
    """Return a unique id at each call, even for the same value."""
    return b"%d" % next(_unlike)


# Identifies classes of hosts by their qualified names, so that none has to be imported.


def qualified_name(kind: type) -> str:
    """Return the qualified name of a class, with its module.

    >>> qualified_name(FunctionType)
    'builtins.function'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def class_names(instance: object) -> frozenset[str]:
    """Return the qualified names of an instance's class and of its base classes."""
    return frozenset(qualified_name(kind) for kind in type(instance).__mro__)


def overridden(instance: object) -> bool:
    """Return whether an attribute of the instance hides a method of its class."""
    try:
        own = list(state(instance))
    except TypeError:
        return True  # unknown
    kind = type(instance)  # a decorated method claims to be a function, but is another object
    methods = [getattr(kind, name, None) for name in own]
    return bool([one for one in methods if isinstance(one, FunctionType)])


def overrides_only(instance: object, base: type, method: str, counterpart: str) -> bool:
    """Return whether the class of an object overrides a method, but not its counterpart.

    >>> class Base:
    ...     def run(self): ...
    ...     def arun(self): ...
    >>> class Own(Base):
    ...     def run(self): ...
    >>> overrides_only(Own(), Base, "run", "arun"), overrides_only(Base(), Base, "run", "arun")
    (True, False)
    """
    kind = type(instance)  # hosts wrap methods again in each subclass
    own, inherited = (
        [inspect.unwrap(getattr(one, name)) for name in (method, counterpart)]
        for one in (kind, base)
    )
    return own[1] is inherited[1] and own[0] is not inherited[0]


def is_known(value: object, names: Container[str]) -> bool:
    """Return whether a value is an instance of exactly a known class, with unmodified methods.

    The class must be the one that its module has under its name, and none of its methods may
    be replaced: neither on the instance, nor on the class or a base class.

    >>> is_known(partial(print), {"functools.partial"}), is_known(partial(print), {"x.Other"})
    (True, False)

    Args:
        value: any value.
        names: qualified names of known classes.
    """
    kind = type(value)
    if qualified_name(kind) not in names or overridden(value):
        return False
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        return False
    return not patched(kind)


def holds_no_code(
    value: object, clients: Container[str], own: str, records: Container[str] = ()
) -> bool:
    """Return whether an attribute of a known store is data, or an unmodified object of its client.

    Args:
        value: the attribute's value.
        clients: packages of clients, by `package_name`.
        own: prefixes of the names of the host's packages, whose objects contain data in turn.
        records: packages whose records are data.
    """
    kind = type(value)
    if kind in _STORED or is_data(value, records):
        return True
    package = package_of(value)
    if package not in clients or isinstance(value, FunctionType | MethodType):
        return package in clients
    if not is_known(value, {qualified_name(kind)}):
        return False
    inside = attributes(value).values() if package.startswith(own) else ()
    return all(type(one) in _STORED or is_data(one, records) for one in inside)


def patched(kind: type) -> bool:
    """Return whether a method of a class, or of a base class, is defined elsewhere.

    >>> class Own:
    ...     def run(self) -> None: ...
    >>> patched(Own)
    False
    >>> from copy import deepcopy
    >>> Own.run = deepcopy
    >>> patched(Own)
    True
    """
    attributes_now = [dict(vars(parent)) for parent in kind.__mro__]
    known = _shipped.get(kind)
    if known is None or not all(map(_same_objects, known[0], attributes_now)):
        known = _shipped[kind] = (attributes_now, _written_elsewhere(kind))
    return known[1]


def _same_objects(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether these are identical objects: a wrapper may equal the wrapped object."""
    return one.keys() == other.keys() and all(map(operator.is_, one.values(), map(other.get, one)))


def _written_elsewhere(kind: type) -> bool:
    packages = {package_name(parent.__module__) for parent in kind.__mro__}
    return any(
        home not in packages and home not in _MAKERS
        for parent in kind.__mro__
        for method in vars(parent).values()
        for home in _homes_of(method)
    )


# The result for a class, with the attributes that it and its base classes had.
_shipped: MutableMapping[type, tuple[list[dict[str, Any]], bool]] = weakref.WeakKeyDictionary()
# Packages whose decorators and metaclasses make methods of other packages' classes.
_MAKERS: Final = frozenset(
    {
        *("_collections_abc", "abc", "asyncio", "collections", "contextlib", "dataclasses"),
        *(
            "deprecated",
            "deprecation",
            "enum",
            "functools",
            "typing",
            "typing_extensions",
            "warnings",
            "wrapt",
        ),
        *("dataclasses_json", "langchain_core", "llama_index.core", "llama_index_instrumentation"),
        *("_abc", "_wrappers", "builtins", "pydantic", "pydantic_core", "tenacity", "types"),
    }
)


def _homes_of(method: object, depth: int = 0) -> Iterator[str]:
    """Yield the packages that define a method's functions and its type of descriptor.

    Decorators contain the decorated function, and descriptors their functions. Unlimited
    nesting (a mock has every attribute) yields an unknown package.
    """
    if depth > _DEEPEST:
        yield ""
        return
    kind = type(method)  # and not the class that a proxy reports
    if not issubclass(kind, type) and (hasattr(kind, "__get__") or callable(method)):
        yield package_name(kind.__module__)
    for name in ("__func__", "fget", "fset", "func", "__wrapped__", "_self_wrapper"):
        inner = getattr(method, name, None)
        if inner is not None and inner is not method:
            yield from _homes_of(inner, depth + 1)
    if isinstance(method, FunctionType):
        yield package_name(str(method.__globals__.get("__name__", "")))


def package_of(thing: Any) -> str:
    """Return the package that defines a function, or an object's class.

    >>> package_of(package_of), package_of([])
    ('ralmspec_plugins', 'builtins')
    """
    while isinstance(thing, partial):
        thing = thing.func
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return package_name(str(named.__module__))


# Walks through the parts of a host's object, recursively, each once.


MOST: Final = 64  # items of an inspected container: an object's parts, not its documents
_DEEPEST: Final = 12  # maximum nesting of parts


def parts(
    whole: object,
    inside: Callable[[object], Iterable[object]],
    besides: tuple[type, ...] = (),
) -> Iterator[object]:
    """Yield the parts of an object recursively, the object itself first.

    Args:
        whole: the object.
        inside: returns the direct parts of a part.
        besides: excluded classes, such as documents.
    """
    seen: set[int] = set()

    def walk(part: object, depth: int) -> Iterator[object]:
        if depth > _DEEPEST or id(part) in seen or issubclass(type(part), besides):
            return
        try:
            part.__class__  # noqa: B018 as isinstance asks for it
        except Exception:  # noqa: BLE001 a proxy without a current object
            return
        seen.add(id(part))
        yield part
        for inner in inside(part):
            yield from walk(inner, depth + 1)

    return walk(whole, 0)


def held(part: object) -> list[Any]:
    """Return the items of a short container, or the fields of a pydantic model; else nothing.

    >>> held([1, {2}]), held({"a": 3}), held("text"), held(range(3)), held([0] * 1000)
    ([1, {2}], [3], [], [], [])
    """
    kind = type(part)
    if issubclass(kind, list | tuple | set | frozenset | dict):
        some: Any = part
        items = some.values() if issubclass(kind, dict) else some
        return list(items) if len(some) <= MOST else []
    return list(attributes(part).values()) if hasattr(kind, "__pydantic_fields__") else []


def attributes(part: object) -> dict[str, Any]:
    """Return all attributes of an instance, including private ones of a pydantic model.

    Cached properties are excluded.
    An object whose class hides them has one attribute with a new object each time.

    >>> class Part:
    ...     def __init__(self) -> None:
    ...         self._k = 4
    >>> attributes(Part()), attributes("text")
    ({'_k': 4}, {})
    """
    kind = type(part)
    try:
        found = state(part)
    except TypeError:
        return {"__dict__": object()}
    own = {
        name: value
        for name, value in found.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }
    own |= getattr(part, "__pydantic_extra__", None) or {}
    return own | (getattr(part, "__pydantic_private__", None) or {})
