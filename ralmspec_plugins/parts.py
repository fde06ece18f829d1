"""The required and optional methods of an engine's workload and retriever."""

import inspect
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, TypeAlias

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.protocols import Progress, Retriever, Workload
from ralmspec_plugins.types import (
    Formed,
    Hit,
    Hits,
    NoRetrieval,
    Query,
    fixed,
    same_to_read,
    unscored,
)

_Given: TypeAlias = str | Query | NoRetrieval | Formed | None


class Parts:
    """A workload and a retriever with uniform methods for the plain loop and the engines.

    Whether a method takes its optional parameters (`progress`, `carried`) is inspected once, here.
    """

    def __init__(
        self, workload: Workload[Any], retriever: Retriever, *, stop_encode_s: float = inf
    ) -> None:
        """Check the parts, and inspect their parameters.

        Args:
            workload: of an engine.
            retriever: of an engine.
            stop_encode_s: the maximum time until an encoding that is not needed has stopped.

        Raises:
            ConfigError: a method is missing.
        """
        _check(workload, _WORKLOAD, "derive it from TextWorkload (ralmspec_plugins.workloads)")
        self.workload: Any = workload
        self.retriever = complete(retriever)
        self.inline_query: bool = workload.inline_query
        self.inline_encode: bool = getattr(self.retriever, "inline_encode", False)
        self._encode_lanes = _lanes(self.retriever)
        self.stop_encode_s = stop_encode_s
        self.retrieves_once = bool(getattr(workload, "retrieves_once", False))
        self._query = _QueryMethod(_offered(workload, "query"))
        self._extend = _ExtendMethod(_offered(workload, "extend"))
        self.start = _offered(workload, "start")
        self.aquery = (
            _QueryMethod(method) if (method := getattr(workload, "aquery", None)) else None
        )
        self.aextend = (
            _ExtendMethod(method) if (method := getattr(workload, "aextend", None)) else None
        )
        self._carries = (self.aextend or self._extend).carries
        if self.aextend and hasattr(workload, "extend") and self._carries != self._extend.carries:
            raise ConfigError(
                f"{type(workload).__name__}: only one of extend() and aextend() has the parameter "
                "'carried'; give it to both"
            )

    @property
    def encode_lanes(self) -> int:
        """The number of queries that may be encoded at a time; a retriever may learn it."""
        with suppress(Exception):  # the plain loop does not read it again
            self._encode_lanes = _lanes(self.retriever)
        return self._encode_lanes

    def form(self, state: Any, progress: Progress) -> Formed:
        """Form the next query of a state.

        Raises:
            InputError: the result is no query, or carries a value that `extend` does not take.
        """
        return self.formed(self._query.call(state, progress))

    async def aform(self, state: Any, progress: Progress) -> Formed:
        """Form the next query with the workload's `aquery`."""
        assert self.aquery is not None
        asked: Awaitable[_Given] = self.aquery.call(state, progress)
        return self.formed(await asked)

    def formed(self, given: _Given) -> Formed:
        """Return the result of `query` as a `Formed`."""
        if given is None or isinstance(given, str):
            return Formed(given)
        if not isinstance(given, Formed):
            return Formed(_usable(given))
        if given.carried is not None and not self._carries:
            raise InputError(
                f"{type(self.workload).__name__}.query() carries a value to extend(), which "
                "has no parameter 'carried'"
            )
        query = given.query
        if query is None or isinstance(query, str):
            return given
        return Formed(_usable(query), given.carried)

    def extend(self, state: Any, hits: Hits, progress: Progress, carried: Any = None) -> Any:
        """Write the next segment."""
        return self._extend.call(state, hits, progress, carried)

    def visible(self, hits: Hits) -> Hits:
        """Return the hits for `extend`: without scores unless it reads them."""
        return hits if self.workload.reads_scores else unscored(hits)

    def agree(self, state: Any, guess: Hits, truth: Hits) -> bool:
        """Return whether a guess reads as the truth; values that cannot be compared differ."""
        agree = getattr(self.workload, "agree", None)
        try:
            same = same_to_read(guess, truth) if agree is None else agree(state, guess, truth)
            return bool(same)
        except Exception:  # noqa: BLE001 the plain loop compares nothing, so this must not fail
            return False

    def text(self, state: Any) -> str:
        """Return the whole text of a state.

        Raises:
            InputError: the result is no text.
        """
        text = self.workload.text(state)
        if not isinstance(text, str):
            raise InputError(f"text() must return a text, got {text!r:.200}")
        return text

    def unencoded(self, text: str) -> Query:
        """Return the query of a text before it is encoded."""
        make = getattr(self.retriever, "unencoded", None)
        return Query(text) if make is None else make(text)

    def encode(self, text: str) -> Query:
        """Encode the query of a text.

        Raises:
            InputError: the result is no query.
        """
        return encoded(self.retriever.encode(text))

    async def aencode(self, text: str) -> Query:
        """Encode the query of a text with the retriever's `aencode`."""
        retriever: Any = self.retriever
        return encoded(await retriever.aencode(text))


# Required methods. An asynchronous method (`aextend`) replaces the synchronous one.

_WORKLOAD = (
    *("start", "query", "extend", "text", "settled", "query_key", "extend_key", "release"),
    *("inline_query", "reads_scores"),
)


def _check(part: object, names: Sequence[str], remedy: str) -> None:
    if isinstance(part, type):
        raise ConfigError(f"{part.__name__} is a class; give an object of it: {part.__name__}(...)")
    missing = [name for name in names if not hasattr(part, name) and not hasattr(part, f"a{name}")]
    if missing:
        raise ConfigError(f"{type(part).__name__} has no {', '.join(missing)}; {remedy}")


def _offered(workload: Any, name: str) -> Callable[..., Any]:
    """Return a method of a workload; if only its coroutine exists, one that says so."""

    def only_awaited(*given: Any, **named: Any) -> Any:
        raise NotImplementedError(
            f"{type(workload).__name__}.a{name}() can only be awaited; use AsyncEngine"
        )

    method: Callable[..., Any] = getattr(workload, name, only_awaited)
    return method


def complete(retriever: Retriever) -> Retriever:
    """Return a retriever with all that an engine needs; the retriever itself if it is complete.

    A retriever without `encode` is searched with the text itself, and one without a `signature`
    shares nothing with any other.

    Raises:
        ConfigError: it has no `search`.
    """
    _check(retriever, ("search",), "a retriever needs search(queries)")
    if all(hasattr(retriever, name) for name in ("signature", "encode", "search")):
        return retriever
    return _Completed(retriever)


class _Identity:
    """The signature of a retriever without one: it is equal to no other signature."""

    def __init__(self, retriever: object) -> None:
        self._retriever = retriever

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._retriever is other._retriever

    def __hash__(self) -> int:
        return id(self._retriever)

    def __repr__(self) -> str:
        return f"<the {type(self._retriever).__name__} at {id(self._retriever):#x}>"


class _Completed:
    """A retriever with its optional methods added."""

    _OFFERED = ("search", "asearch", "aencode")
    _OF_K = ("search_wide", "asearch_wide", "table")  # only together with `k`

    def __init__(self, retriever: Any) -> None:
        self._retriever = retriever
        self._identity = _Identity(retriever)
        offered = self._OFFERED + (self._OF_K if hasattr(retriever, "k") else ())
        for name in offered:  # as attributes: runtime protocols do not call __getattr__
            if hasattr(retriever, name):
                setattr(self, name, getattr(retriever, name))
        if not hasattr(retriever, "encode") and not hasattr(retriever, "aencode"):
            self.inline_encode = True

    @property
    def signature(self) -> Hashable:
        own: Hashable = getattr(self._retriever, "signature", self._identity)
        return own

    @property
    def k(self) -> int:
        """The current k of the retriever."""
        own: int = self._retriever.k
        return own

    def encode(self, text: str) -> Query:
        make = getattr(self._retriever, "encode", None)
        if make is None and hasattr(self._retriever, "aencode"):
            raise NotImplementedError(f"{self!r} can only be awaited; use AsyncEngine")
        return Query(text) if make is None else make(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        raise NotImplementedError(f"{self!r} can only be awaited; use AsyncEngine")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._retriever, name)

    def __repr__(self) -> str:
        return repr(self._retriever)


def encoded(query: Any) -> Query:
    """Check that the result of a retriever's `encode` is a query.

    Raises:
        InputError: it is none, or its key cannot be a key.
    """
    if not isinstance(query, Query):
        raise InputError(f"encode() must return a Query, got {query!r}")
    _check_key(query)
    return query


def results(found: Any, queries: Sequence[Query]) -> list[Hits]:
    """Check that a search returned hits for each query, and make them immutable.

    Raises:
        InputError: there are more or fewer results than queries, or they are not made of hits.
    """
    try:
        each = iter(found)
    except TypeError:
        message = f"search() must return a sequence of results, got {found!r:.200}"
        raise InputError(message) from None
    listed = list(each)  # a lazy sequence raises its errors here
    if len(listed) != len(queries):
        raise InputError(
            f"the retriever gave {len(listed)} results for {len(queries)} queries; "
            f"it must give one for each, in order"
        )
    return [_hits(hits) for hits in listed]


def _hits(given: Any) -> Hits:
    if not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
        raise InputError(
            f"search() must return a sequence of hits for each query, got {given!r:.200} for one"
        )
    hits = fixed(given)  # a lazy sequence raises its errors here
    if type(hits) is tuple:
        for hit in hits:
            if not isinstance(hit, Hit):
                raise InputError(
                    "search() must return a sequence of hits for each query, each a "
                    f"Hit(passage, score), got {hit!r:.200} in one"
                )
    return hits


def _usable(query: Any) -> Query | NoRetrieval:
    """Check that the key of a workload's own query identifies it.

    Raises:
        InputError: it is none, or its key cannot be a key.
    """
    if isinstance(query, NoRetrieval):
        return query
    if not isinstance(query, Query):
        raise InputError(
            f"query() must return a text, a Query, NO_RETRIEVAL or None, got {query!r:.200}"
        )
    _check_key(query)
    if query.encoding is not None and query.key == query.text:
        # Several encodings may have one text: without its own key it equals no other query.
        return Query(query.text, query.encoding, key=_NoKey())
    return query


class _NoKey:
    """The key of a query that brings an encoding and no key: equal to no other."""


def as_given(query: Query) -> Query:
    """Return a query for the record: one that brought no key equals those of the same text."""
    return Query(query.text, query.encoding) if isinstance(query.key, _NoKey) else query


def _check_key(query: Query) -> None:
    try:
        hash(query.key)
    except TypeError as error:
        raise InputError(f"the key of a query must be hashable, got {query.key!r}") from error


def _lanes(retriever: Retriever) -> int:
    lanes = getattr(retriever, "encode_lanes", 1)
    if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
        raise ConfigError(f"encode_lanes must be a whole number of at least 1, got {lanes!r}")
    return lanes


# The optional parameters of a method, by name.


class _QueryMethod:
    """A workload's `query` or `aquery`."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._reports = "progress" in [one.name for one in _parameters(method)[0]]

    def call(self, state: Any, progress: Progress) -> Any:
        return self._method(state, progress=progress) if self._reports else self._method(state)


class _ExtendMethod:
    """A workload's `extend` or `aextend`."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        parameters, several = _parameters(method)
        self.carries = "carried" in [one.name for one in parameters]
        progress = _progress_of(parameters)
        self._by_place = several or (progress in parameters[2:3] and _has_place(progress))
        self._name = None if self._by_place or progress is None else progress.name
        self._plain = self._by_place and not self.carries

    def call(self, state: Any, hits: Hits, progress: Progress, carried: Any) -> Any:
        if self._plain:
            return self._method(state, hits, progress)
        given = (state, hits, progress) if self._by_place else (state, hits)
        named = {} if self._name is None else {self._name: progress}
        if self.carries:
            named["carried"] = carried
        return self._method(*given, **named)


def _has_place(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.kind is not parameter.KEYWORD_ONLY


def _progress_of(parameters: Sequence[inspect.Parameter]) -> inspect.Parameter | None:
    """Return the parameter `progress` of `extend`, or the third one that must be given."""
    others = [one for one in parameters[2:] if one.name != "carried"]
    named = [one for one in others if one.name == "progress"]
    required = [one for one in others if one.default is one.empty]
    return next(iter(named + required), None)


def _parameters(method: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """Return a method's parameters, and whether it takes any number of them."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # a built-in without a signature
        return [], True
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = [one for one in parameters if one.kind not in several]
    return own, any(one.kind is one.VAR_POSITIONAL for one in parameters)
