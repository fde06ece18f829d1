"""Converts users' existing retrieval chains to a `SpeculativeRAG`.

A chain is split at its retriever: the parts before it make the query, and the parts after it
make the answer. If the latter have a form of LangChain's own helpers or documentation, prompt,
model and parser are recognised; otherwise they are called unchanged, with the documents in
place of the retriever. No source code is inspected. A chain that cannot be split is rejected
with an error that names the part: a chain that is only almost equivalent would give wrong
answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import itemgetter, or_
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.passthrough import RunnableAssign, RunnablePick
from langchain_core.runnables.retry import RunnableRetry
from langchain_core.runnables.utils import accepts_config, accepts_run_manager

from langchain_ralmspec.capabilities import unwrapped
from langchain_ralmspec.inspection import concrete
from langchain_ralmspec.rag import SpeculativeRAG
from langchain_ralmspec.response import ChainShape
from ralmspec_plugins.adapters.retriever_state import HostStats
from ralmspec_plugins.errors import ConfigError

_STUFF: Final = "create_stuff_documents_chain.<locals>.format_docs"
_TAKES_INPUT: Final = "create_retrieval_chain.<locals>.<lambda>"
_REMEDY: Final = (
    "Supported are input -> [query |] retriever [| functions] -> prompt | model | parser. Put "
    "other parts around or after the result of speculate(), or pass the parts to "
    "SpeculativeRAG(retriever=..., llm=..., prompt=...)."
)


@dataclass(frozen=True, slots=True)
class _Context:
    """The parts of a chain that make its documents."""

    query: Runnable[Any, Any] | None  # of the input; None: the input, or a key of it
    question_key: str | None  # None: the input is the question, or `query` makes it
    retriever: Runnable[Any, Any]
    behind: tuple[Runnable[Any, Any], ...]

    @property
    def documents(self) -> Runnable[Any, Any]:
        """The part of the chain from the query to its documents."""
        return reduce(or_, self.behind, self.retriever)


class SpeculativeChain(RunnableBinding[Any, Any]):
    """A `SpeculativeRAG` in the wrappers of the chain that it was made from.

    The wrappers are retries, fallbacks, a config, or listeners.
    """

    @property
    def rag(self) -> SpeculativeRAG:
        """The `SpeculativeRAG` inside."""
        inner: Any = self.bound
        while not isinstance(inner, SpeculativeRAG):
            inner = inner.runnable if isinstance(inner, RunnableWithFallbacks) else inner.bound
        return inner

    @property
    def stats(self) -> HostStats:
        """The calls of the retriever's store so far: round trips, and queries in them."""
        return self.rag.stats

    def invalidate(self) -> None:
        """Clear memo and pool, after a change of the index."""
        self.rag.invalidate()

    def close(self) -> None:
        """Wait for searches that are no longer needed, and shut down the threads."""
        self.rag.close()


def speculate(chain: Runnable[Any, Any], **settings: Any) -> SpeculativeRAG | SpeculativeChain:
    """Return a runnable with the results of a chain in less time.

    Supported are `create_retrieval_chain(retriever, create_stuff_documents_chain(...))`, also
    with `create_history_aware_retriever(...)`; chains such as `{"context": retriever | show,
    "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()`, also with
    `RunnablePassthrough.assign(context=...)` first; chains that return their sources
    (`RunnableParallel(context=retriever, ...).assign(answer=...)`); and all of these in
    `.with_config(...)`, `.with_retry()` and `.with_fallbacks(...)`.

    The result has the form and the schemas of the chain's result.

    Args:
        chain: the chain.
        settings: fields of `SpeculativeRAG`. The workload is "one_shot" by default: one
            retrieval and one call, as in the chain.

    Returns:
        A `SpeculativeRAG`; for a chain in wrappers, a `SpeculativeChain`, which has the same
        wrappers. Both have `stats`, `invalidate()` and `close()`.

    Raises:
        ConfigError: a part of the chain could not be recognised; the message names it.
    """
    made = _made_of(chain, settings)
    return made if isinstance(made, SpeculativeRAG) else SpeculativeChain(bound=made)


def _made_of(chain: Runnable[Any, Any], settings: Mapping[str, Any]) -> Runnable[Any, Any]:
    """Return a `SpeculativeRAG` in the wrappers of a chain."""
    if isinstance(chain, RunnableWithFallbacks):
        return chain.model_copy(update={"runnable": _made_of(chain.runnable, settings)})
    inner, name = _named(chain)
    wrapped = isinstance(inner, RunnableRetry | RunnableWithFallbacks)
    if wrapped or type(inner) is RunnableBinding:
        return _around(chain, settings)
    steps = _steps(inner)
    if len(steps) == 2 and isinstance(steps[1], RunnableAssign):
        fields = _with_sources(steps[0], steps[1])
    else:
        fields = _answer_alone(steps, shown_as_text=bool(settings.get("direct")))
    own = {"name": name, "workload": "one_shot", **fields, **settings}
    if fields["chain"].whole and own["workload"] != "one_shot":
        raise ConfigError(
            "speculate() could not find prompt, model and parser in this chain, so it supports "
            f"only workload='one_shot', got {own['workload']!r}. {_REMEDY}"
        )
    return SpeculativeRAG(**own | {"chain": replace(fields["chain"], like=chain)})


def _around(wrapping: Any, settings: Mapping[str, Any]) -> Runnable[Any, Any]:
    """Return a `SpeculativeRAG` of the wrapped chain in the same wrapper.

    Raises:
        ConfigError: arguments are bound to the chain, which only its first step would receive.
    """
    if wrapping.kwargs:
        raise ConfigError(
            "speculate() does not support arguments that are bound to the chain: "
            f"{', '.join(wrapping.kwargs)}. Bind them to the part that takes them."
        )
    made: Runnable[Any, Any] = _made_of(wrapping.bound, settings)
    around: Runnable[Any, Any] = wrapping.model_copy(update={"bound": made})
    return around


# Chains that return their sources, and chains that return only the answer.


def _with_sources(first: Runnable[Any, Any], second: RunnableAssign) -> dict[str, Any]:
    """Return the fields for `create_retrieval_chain(...)`, or another chain with sources."""
    answer = _only(second, "answer")
    if isinstance(first, RunnableAssign):
        context = _context(_only(first, "context"), "context")
        shape = ChainShape(takes=context.question_key)
        fields = _stuffed(answer)
        if fields is not None:
            return {**fields, "chain": shape, **_found_by(context, context.documents)}
        shape = replace(shape, whole=True)
        tail = RunnableLambda(_assigned) | answer
    elif isinstance(first, RunnableParallel):
        places: Mapping[str, Runnable[Any, Any]] = first.steps__
        if "context" not in places:
            raise _refused("its first step", first, "documents under 'context'")
        context = _context(places["context"], "context")
        rest = {name: part for name, part in places.items() if name != "context"}
        reply = tuple(_passed(rest).items())
        shape = ChainShape(whole=True, reply=reply, takes=context.question_key)
        made: dict[str, Any] = {"context": _DOCUMENTS}
        made |= {name: _INPUT | part for name, part in rest.items()}
        tail = RunnableParallel(made) | answer
    else:
        raise _refused("its first step", first, "a dict, or RunnablePassthrough.assign(...)")
    return {"llm": tail, "chain": shape, **_found_by(context, context.documents)}


def _stuffed(combine: Runnable[Any, Any]) -> dict[str, Any] | None:
    """Return the fields for `create_stuff_documents_chain(...)`; `None` for other chains."""
    steps = _steps(combine)
    if not isinstance(inner := _named(steps[0])[0], RunnableAssign):
        return None
    places: Mapping[str, Any] = inner.mapper.steps__
    function: Any = getattr(places.get("context"), "func", None)
    if len(places) != 1 or getattr(function, "__qualname__", "") != _STUFF:
        return None
    told = _told(steps[1:])
    if told is None:
        return None
    return {**told, "format_docs": lambda documents: function({"context": documents})}


def _answer_alone(steps: Sequence[Runnable[Any, Any]], *, shown_as_text: bool) -> dict[str, Any]:
    """Return the fields for `{...} | prompt | llm | parser`."""
    first = steps[0]
    assigns = isinstance(first, RunnableAssign)
    if isinstance(first, RunnableAssign):
        places: Mapping[str, Runnable[Any, Any]] = first.mapper.steps__
    elif isinstance(first, RunnableParallel):
        places = first.steps__
    else:
        raise _refused("its first step", first, "a dict, or RunnablePassthrough.assign(...)")
    variable = next((name for name, part in places.items() if _retrieves(part)), None)
    if variable is None:
        raise _refused("its first step", first, "a key with a retriever, not inside a function")
    if len(steps) == 1:
        raise _refused("what follows the documents", None, "prompt | model | parser")
    _check_gives_no_message(steps[-1])
    context = _context(places[variable], variable)
    rest = {name: part for name, part in places.items() if name != variable}
    fields = _in_parts(steps[1:], variable, context, rest, assigns=assigns)
    if fields is not None:
        if not context.behind:
            fields["format_docs"] = _as_python_shows_it if shown_as_text else list
        return {**fields, "output": "answer"}
    made: dict[str, Any] = {variable: reduce(or_, context.behind, _DOCUMENTS)}
    made |= {name: _INPUT | part for name, part in rest.items()}
    start: Runnable[Any, Any] = RunnableParallel(made)
    if assigns:
        both: dict[str, Any] = {"input": _INPUT, "made": start}
        start = RunnableParallel(both) | RunnableLambda(_laid_over)
    tail = reduce(or_, steps[1:], start)
    shape = ChainShape(whole=True, takes=context.question_key)
    return {
        "llm": tail,
        "chain": shape,
        "output": "answer",
        **_found_by(context, context.retriever),
    }


def _in_parts(
    steps: Sequence[Runnable[Any, Any]],
    variable: str,
    context: _Context,
    rest: Mapping[str, Runnable[Any, Any]],
    *,
    assigns: bool,
) -> dict[str, Any] | None:
    """Return the fields for a chain of known parts only; `None` for other chains."""
    told = _told(steps)
    if told is None or context.query is not None or (assigns and rest):
        return None
    shows = context.behind
    if len(shows) > 1 or not all(map(_is_plain_function, shows)):
        return None
    if not all(_passes(part) or _selected(part) is not None for part in rest.values()):
        return None
    show: Any = shows[0] if shows else None
    return {
        **told,
        **_found_by(context, context.retriever),
        "document_variable_name": variable,
        "format_docs": None if show is None else show.func,
        "chain": ChainShape(
            takes=context.question_key,
            passes=None if assigns else tuple(_passed(rest).items()),
        ),
    }


def _told(steps: Sequence[Runnable[Any, Any]]) -> dict[str, Any] | None:
    """Return prompt, model and parser; `None` if the steps are others."""
    if len(steps) != 3:
        return None
    prompt, llm, parser = steps
    if not isinstance(prompt, BasePromptTemplate) or not _is_model(llm):
        return None
    if not isinstance(parser, BaseOutputParser):
        return None
    text = type(parser) is StrOutputParser
    return {"prompt": prompt, "llm": llm, "output_parser": None if text else parser}


def _is_model(part: Runnable[Any, Any]) -> bool:
    """Return whether a part is a model, possibly with retries or fallbacks."""
    inner = unwrapped(part).model
    if isinstance(inner, RunnableWithFallbacks):
        return _is_model(inner.runnable)
    return isinstance(inner, BaseLanguageModel)


def _check_gives_no_message(last: Runnable[Any, Any]) -> None:
    """Check that a chain does not end with a chat model.

    Raises:
        ConfigError: it does, so its result is a message, not a text.
    """
    if isinstance(unwrapped(last).model, BaseChatModel):
        raise ConfigError(
            "speculate() expects a chain that returns a text or a parser's result, got one that "
            "ends with a chat model. Put StrOutputParser() at its end."
        )


# The parts that make the documents: the query, the retriever, and functions after it.


def _context(part: Runnable[Any, Any], name: str) -> _Context:
    """Return the parts of `[query |] retriever [| functions]`."""
    inner = _named(part)[0]
    if isinstance(inner, RunnableBranch):
        return _branched(inner, name)
    steps = _steps(inner)
    at = next((i for i, step in enumerate(steps) if _is_retriever(step)), None)
    if at is None:
        raise _refused(f"the part at {name!r}", inner, "[query |] retriever [| functions]")
    key = _selected(steps[0]) if at == 1 else None
    query = None if at == 0 or key is not None else reduce(or_, steps[:at])
    return _Context(query, key, steps[at], tuple(steps[at + 1 :]))


def _branched(branch: RunnableBranch[Any, Any], name: str) -> _Context:
    """Return the parts of `create_history_aware_retriever(...)`, which has one retriever."""
    ways = [_context(way, name) for way in (*(one for _, one in branch.branches), branch.default)]
    first = ways[0].retriever
    if any(way.retriever is not first or way.behind for way in ways):
        raise _refused(f"the part at {name!r}", branch, "the same retriever in all branches")
    *heads, default = map(_query_of, ways)
    conditions = [condition for condition, _ in branch.branches]
    query = RunnableBranch(*zip(conditions, heads, strict=True), default)
    return _Context(query, None, first, ())


def _query_of(way: _Context) -> Runnable[Any, Any]:
    if way.query is not None:
        return way.query
    key = way.question_key
    return RunnablePassthrough() if key is None else RunnableLambda(itemgetter(key))


def _found_by(context: _Context, retriever: Runnable[Any, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"retriever": retriever}
    if context.query is not None:
        fields["query"] = context.query
    if context.question_key is not None:
        fields["question_key"] = context.question_key
    return fields


def _is_retriever(part: Runnable[Any, Any]) -> bool:
    """Return whether a part is a retriever, possibly with retries, fallbacks or listeners."""
    inner = concrete(part, {}, {}).runnable
    if isinstance(inner, RunnableRetry | RunnableBinding):
        return _is_retriever(inner.bound)
    if isinstance(inner, RunnableWithFallbacks):
        return _is_retriever(inner.runnable)
    return isinstance(inner, BaseRetriever)


def _retrieves(part: Runnable[Any, Any]) -> bool:
    """Return whether a part has a retriever among its steps."""
    inner = _named(part)[0]
    if isinstance(inner, RunnableBranch):
        return _retrieves(inner.default)
    return any(map(_is_retriever, _steps(inner)))


# Functions and selectors.


def _is_plain_function(part: Any) -> bool:
    """Return whether a step is one synchronous function of only its input."""
    if type(part) is not RunnableLambda or not hasattr(part, "func") or hasattr(part, "afunc"):
        return False
    return not accepts_config(part.func) and not accepts_run_manager(part.func)


def _passes(part: Runnable[Any, Any]) -> bool:
    return type(part) is RunnablePassthrough and part.func is None and part.afunc is None


def _passed(rest: Mapping[str, Runnable[Any, Any]]) -> dict[str, str | None]:
    """Return the input's key for each name in the reply; `None` is the whole input.

    Raises:
        ConfigError: a value is computed.
    """
    keys: dict[str, str | None] = {}
    for name, part in rest.items():
        keys[name] = None if _passes(part) else _selected(part)
        if keys[name] is None and not _passes(part):
            raise _refused(f"the part at {name!r}", part, "RunnablePassthrough() or itemgetter")
    return keys


def _selected(part: Runnable[Any, Any]) -> str | None:
    """Return the key that `itemgetter(key)` reads from a dict; `None` for other parts.

    Other functions are not inspected: they are called with the real input.
    """
    if isinstance(part, RunnablePick):
        return None  # it returns `None` for a missing key, for which `itemgetter` raises
    function: Any = getattr(part, "func", None)
    if not _is_plain_function(part):
        return None
    if type(function) is itemgetter:
        keys = function.__reduce__()[1]
        return keys[0] if len(keys) == 1 and isinstance(keys[0], str) else None
    named = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    known = named[0] == _TAKES_INPUT and named[1].startswith("langchain_classic.")
    return "input" if known else None


_DOCUMENTS: Final[Runnable[Any, Any]] = RunnableLambda(itemgetter("documents"))
_INPUT: Final[Runnable[Any, Any]] = RunnableLambda(itemgetter("input"))


def _assigned(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**given["input"], "context": given["documents"]}


def _laid_over(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**given["input"], **given["made"]}


def _only(assign: RunnableAssign, name: str) -> Runnable[Any, Any]:
    """Return the only part that is assigned."""
    places = assign.mapper.steps__
    if len(places) != 1 or name not in places:
        raise _refused(f"the assignment of {list(places)}", assign, f"one assignment, of {name!r}")
    return next(iter(places.values()))


def _steps(part: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    """Return the steps of a sequence, including those of nested sequences."""
    inner = _named(part)[0]
    if not isinstance(inner, RunnableSequence):
        return [part]
    return [step for one in inner.steps for step in _steps(one)]


def _named(part: Runnable[Any, Any]) -> tuple[Runnable[Any, Any], str | None]:
    """Return a chain without bindings of only a run name, and that name."""
    name = None
    while type(part) is RunnableBinding and not isinstance(part.bound, BaseRetriever):
        beside = {key for key, value in part.config.items() if value} - {"run_name"}
        if part.kwargs or part.config_factories or beside:
            break
        name = name or part.config.get("run_name")
        part = part.bound
    return part, name


def _as_python_shows_it(documents: list[Document]) -> str:
    return f"{documents}"  # as a prompt formats a list


def _refused(what: str, got: Any, wanted: str) -> ConfigError:
    kind = "nothing" if got is None else type(got).__name__
    if isinstance(got, BaseRetriever):
        kind += " (for a retriever alone use SpeculativeRetriever(retriever=...))"
    return ConfigError(
        f"speculate() could not recognise {what}: expected {wanted}, got {kind}. {_REMEDY}"
    )
