"""Recognises the retrieval chains that users already have, and makes a `SpeculativeRAG` of them.

A chain is taken apart at its retriever: what stands before it makes the query, and what stands
behind it makes the answer. Where LangChain's own helpers and its documentation built that,
prompt, model and parser are found; else it is called as it is, with the documents in the
retriever's place. No code is read. What cannot be taken apart is refused by the name of the
part: an equivalent that is nearly one would be a wrong answer.
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
    "Understood are input -> [query |] retriever [| functions] -> prompt | model | parser; what "
    "has another shape goes around or behind what speculate() gives, or is given in parts to "
    "SpeculativeRAG(retriever=..., llm=..., prompt=...)."
)


@dataclass(frozen=True, slots=True)
class _Context:
    """Where a chain's documents come from, and what is done with them."""

    query: Runnable[Any, Any] | None  # of the input; None: the input, or a key of it
    question_key: str | None  # None: the input is the question, or `query` makes it
    retriever: Runnable[Any, Any]
    behind: tuple[Runnable[Any, Any], ...]

    @property
    def documents(self) -> Runnable[Any, Any]:
        """What gives the documents as the chain has them."""
        return reduce(or_, self.behind, self.retriever)


class SpeculativeChain(RunnableBinding[Any, Any]):
    """A `SpeculativeRAG` in the wrappings of the chain that it was made of, with its handles.

    As a runnable it is these wrappings: retries, fallbacks, a config, listeners.
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
        """What has reached the retriever's store so far: round trips, and queries in them."""
        return self.rag.stats

    def invalidate(self) -> None:
        """Forget what was found, for when the index has changed: memo and pool are emptied."""
        self.rag.invalidate()

    def close(self) -> None:
        """Wait for searches that nobody needs any more, and let the threads go."""
        self.rag.close()


def speculate(chain: Runnable[Any, Any], **settings: Any) -> SpeculativeRAG | SpeculativeChain:
    """Make the runnable that gives what a chain gives, sooner.

    Understood are `create_retrieval_chain(retriever, create_stuff_documents_chain(...))`, also
    with `create_history_aware_retriever(...)`; chains such as `{"context": retriever | show,
    "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()`, also with
    `RunnablePassthrough.assign(context=...)` in front; chains that give their sources
    (`RunnableParallel(context=retriever, ...).assign(answer=...)`); and all of these in
    `.with_config(...)`, `.with_retry()` and `.with_fallbacks(...)`.

    What comes back is what the chain gives, and its schemas are the chain's.

    Args:
        chain: the chain.
        settings: fields of `SpeculativeRAG`. The workload is "one_shot" unless another is
            asked for: one retrieval and one call, as in the chain.

    Returns:
        A `SpeculativeRAG`; for a chain in wrappings, a `SpeculativeChain`: that in the same
        wrappings. Both have `stats`, `invalidate()` and `close()`.

    Raises:
        ConfigError: a part of the chain could not be recognised; the message names it.
    """
    made = _made_of(chain, settings)
    return made if isinstance(made, SpeculativeRAG) else SpeculativeChain(bound=made)


def _made_of(chain: Runnable[Any, Any], settings: Mapping[str, Any]) -> Runnable[Any, Any]:
    """Make a `SpeculativeRAG` of a chain, in what is around the chain."""
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
            "speculate() could not find prompt, model and parser in this chain, so it can only "
            f"be called as it is, with workload='one_shot', got {own['workload']!r}. {_REMEDY}"
        )
    return SpeculativeRAG(**own | {"chain": replace(fields["chain"], like=chain)})


def _around(wrapping: Any, settings: Mapping[str, Any]) -> Runnable[Any, Any]:
    """Put what was around a chain around what is made of it.

    Raises:
        ConfigError: arguments are bound to the chain, which go to its first step alone.
    """
    if wrapping.kwargs:
        raise ConfigError(
            "speculate() cannot take over what is bound to the chain: "
            f"{', '.join(wrapping.kwargs)}. Bind it to the part that takes it."
        )
    made: Runnable[Any, Any] = _made_of(wrapping.bound, settings)
    around: Runnable[Any, Any] = wrapping.model_copy(update={"bound": made})
    return around


# A chain that gives its sources, and one that gives its answer alone.


def _with_sources(first: Runnable[Any, Any], second: RunnableAssign) -> dict[str, Any]:
    """Take `create_retrieval_chain(...)`, or another chain that gives its sources, apart."""
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
    """Take `create_stuff_documents_chain(...)` apart; `None`: it is something else."""
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
    """Take `{...} | prompt | llm | parser` apart."""
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
        raise _refused("its first step", first, "a place with a retriever in it")
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
    """Give prompt, model and parser, where all else is plain too; `None` where it is not."""
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
    """Find prompt, model and parser; `None`: it is something else."""
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
    """Whether a part is a model, perhaps with retries or fallbacks."""
    inner = unwrapped(part).model
    if isinstance(inner, RunnableWithFallbacks):
        return _is_model(inner.runnable)
    return isinstance(inner, BaseLanguageModel)


def _check_gives_no_message(last: Runnable[Any, Any]) -> None:
    """Refuse a chain that ends with a chat model.

    Raises:
        ConfigError: what it gives is a message, not a text.
    """
    if isinstance(unwrapped(last).model, BaseChatModel):
        raise ConfigError(
            "speculate() expects a chain that gives a text or what a parser makes of it, got one "
            "that ends with a chat model. Put StrOutputParser() at its end."
        )


# The place of the documents: what makes the query, the retriever, and what is behind it.


def _context(part: Runnable[Any, Any], name: str) -> _Context:
    """Take `[query |] retriever [| functions]` apart."""
    inner = _named(part)[0]
    if isinstance(inner, RunnableBranch):
        return _branched(inner, name)
    steps = _steps(inner)
    at = next((i for i, step in enumerate(steps) if _is_retriever(step)), None)
    if at is None:
        raise _refused(f"what stands at {name!r}", inner, "[query |] retriever [| functions]")
    key = _selected(steps[0]) if at == 1 else None
    query = None if at == 0 or key is not None else reduce(or_, steps[:at])
    return _Context(query, key, steps[at], tuple(steps[at + 1 :]))


def _branched(branch: RunnableBranch[Any, Any], name: str) -> _Context:
    """Take `create_history_aware_retriever(...)` apart: all branches end with one retriever."""
    ways = [_context(way, name) for way in (*(one for _, one in branch.branches), branch.default)]
    first = ways[0].retriever
    if any(way.retriever is not first or way.behind for way in ways):
        raise _refused(f"what stands at {name!r}", branch, "the same retriever in all branches")
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
    """Whether a part is a retriever, perhaps with retries, fallbacks or listeners."""
    inner = concrete(part, {}, {}).runnable
    if isinstance(inner, RunnableRetry | RunnableBinding):
        return _is_retriever(inner.bound)
    if isinstance(inner, RunnableWithFallbacks):
        return _is_retriever(inner.runnable)
    return isinstance(inner, BaseRetriever)


def _retrieves(part: Runnable[Any, Any]) -> bool:
    """Whether a part has a retriever among its steps."""
    inner = _named(part)[0]
    if isinstance(inner, RunnableBranch):
        return _retrieves(inner.default)
    return any(map(_is_retriever, _steps(inner)))


# Functions and selectors.


def _is_plain_function(part: Any) -> bool:
    """Whether a step is a function of its input alone, the same for all ways of calling it."""
    if type(part) is not RunnableLambda or not hasattr(part, "func") or hasattr(part, "afunc"):
        return False
    return not accepts_config(part.func) and not accepts_run_manager(part.func)


def _passes(part: Runnable[Any, Any]) -> bool:
    return type(part) is RunnablePassthrough and part.func is None and part.afunc is None


def _passed(rest: Mapping[str, Runnable[Any, Any]]) -> dict[str, str | None]:
    """Say which of the input's keys stand in the reply under which name; `None`: all of it.

    Raises:
        ConfigError: one is computed.
    """
    keys: dict[str, str | None] = {}
    for name, part in rest.items():
        keys[name] = None if _passes(part) else _selected(part)
        if keys[name] is None and not _passes(part):
            raise _refused(f"what stands at {name!r}", part, "RunnablePassthrough() or itemgetter")
    return keys


def _selected(part: Runnable[Any, Any]) -> str | None:
    """Give the key that `itemgetter(key)` or `RunnablePick` takes out of a dict.

    Other functions are not read: they are called with the real input.
    """
    if isinstance(part, RunnablePick):
        return None  # gives `None` for a key that is missing, where we would raise
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
    """Give the one thing that is assigned."""
    places = assign.mapper.steps__
    if len(places) != 1 or name not in places:
        raise _refused(f"the assignment of {list(places)}", assign, f"one assignment, of {name!r}")
    return next(iter(places.values()))


def _steps(part: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    """List the steps of a sequence, those of sequences in it too."""
    inner = _named(part)[0]
    if not isinstance(inner, RunnableSequence):
        return [part]
    return [step for one in inner.steps for step in _steps(one)]


def _named(part: Runnable[Any, Any]) -> tuple[Runnable[Any, Any], str | None]:
    """Take the run names off a chain; what else is bound to it stays around it."""
    name = None
    while type(part) is RunnableBinding and not isinstance(part.bound, BaseRetriever):
        beside = {key for key, value in part.config.items() if value} - {"run_name"}
        if part.kwargs or part.config_factories or beside:
            break
        name = name or part.config.get("run_name")
        part = part.bound
    return part, name


def _as_python_shows_it(documents: list[Document]) -> str:
    return f"{documents}"  # what a prompt makes of a list


def _refused(what: str, got: Any, wanted: str) -> ConfigError:
    kind = "nothing" if got is None else type(got).__name__
    return ConfigError(
        f"speculate() could not recognise {what}: expected {wanted}, got {kind}. {_REMEDY}"
    )
