"""Java's methods as Python functions that threads can share.

pyjnius keeps one method object for each class, and reading `thing.method` writes
`thing` into it: of two threads that call one method on two objects at once, both
can reach the same object (its issues 287 and 563). So a search could be answered
by another index, without any error. Here each object's method gets a method
object of its own, in a private class that nobody else can see, and is looked up
once. No other method of a Java object is ever called, so that not even threads
that use pyserini at the same time can interfere.

Static methods, constructors and fields have no such fault, and come from
`java_class` as they are.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ralmspec_plugins.retrieval.lucene_jvm import classes, java_class
from ralmspec_plugins.retrieval.optional import optional

_PRIVATE = "ralmspec_plugins"  # where autoclass never looks
_norms = threading.Lock()


class _Bound:
    """A method, and the class that it needs without holding it: pyjnius would use freed memory."""

    __slots__ = ("_call", "_own")

    def __init__(self, call: Callable[..., Any], own: Any) -> None:
        self._call = call
        self._own = own

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def method(target: Any, kind: str, name: str, signature: str) -> Callable[..., Any]:
    """Bind a method to its object for good.

    Args:
        target: the object.
        kind: the class that declares the method.
        name: the method's.
        signature: arguments and result in the notation of class files: it says which overloaded
            method is meant, so that pyjnius need not find out at each call.
    """
    jnius = _jnius()
    with classes:
        _look_up_result(signature)
        own = _private(kind, {name: jnius.JavaMethod(signature)})
        return _Bound(getattr(jnius.cast(own, target), name), own)


@cache
def function(kind: str, name: str, signature: str) -> Callable[..., Any]:
    """Find a static method."""
    with classes:
        _look_up_result(signature)
        own = _private(kind, {name: _jnius().JavaStaticMethod(signature)})
        return _Bound(getattr(own, name), own)


def norms_at(norms: Any, numbers: Sequence[int]) -> list[int | None]:
    """Read Lucene's norms of passages, numbers ascending: one object's methods, many times.

    Objects like this one live for one search only, so their class is shared, under the lock.
    """
    with _norms:
        own = _jnius().cast(_norms_class(), norms)
        return [own.longValue() & 255 if own.advanceExact(number) else None for number in numbers]


@cache
def _norms_class() -> Any:
    make = _jnius().JavaMethod
    members = {"advanceExact": make("(I)Z"), "longValue": make("()J")}
    with classes:
        return _private("org.apache.lucene.index.NumericDocValues", members)


def _look_up_result(signature: str) -> None:
    """Look up the class of a method's results now, before two threads get their first ones."""
    result = signature.rpartition(")")[2]
    if result.startswith("L"):
        java_class(result[1:-1].replace("/", "."))


def _private(kind: str, members: dict[str, Any]) -> Any:
    jnius = _jnius()
    about = {"__javaclass__": kind.replace(".", "/"), "__javaconstructor__": [], **members}
    meta = jnius.MetaJavaClass
    return meta.__new__(meta, kind, (jnius.JavaClass,), about, classparams=_PRIVATE)


def _jnius() -> Any:
    return optional("jnius", "lucene", "pyjnius")
