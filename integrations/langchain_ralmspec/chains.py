"""Recognises the retrieval chains that users already have, and makes a `SpeculativeRAG` of them.

A chain is taken apart by the exact shapes that LangChain's own helpers and its
documentation build. What has another shape is refused with the place that was not
understood: an equivalent that is nearly one would be a wrong answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)
from langchain_core.runnables.passthrough import RunnableAssign, RunnablePick
from langchain_core.runnables.utils import accepts_config, accepts_run_manager

from langchain_ralmspec.capabilities import unwrapped
from langchain_ralmspec.inspection import concrete
from langchain_ralmspec.rag import SpeculativeRAG
from ralmspec_plugins.errors import ConfigError

_TAKES_A_KEY: Final = lambda x: x["key"]  # noqa: E731 its code is what is compared
_STUFF: Final = "create_stuff_documents_chain.<locals>.format_docs"
_ADVICE: Final = "Give the parts to SpeculativeRAG(retriever=..., llm=..., prompt=...) instead."


@dataclass(frozen=True, slots=True)
class _Context:
    """Where a chain's documents come from, and how they are shown."""

    retriever: Runnable[Any, Any]
    question_key: str | None  # of the chain's input; None where the input is the question
    show: Callable[[list[Document]], str] | None


def speculate(chain: Runnable[Any, Any], **settings: Any) -> SpeculativeRAG:
    """Make the runnable that gives what a chain gives, sooner.

    Understood are `create_retrieval_chain(retriever, create_stuff_documents_chain(...))`
    and chains such as `{"context": retriever | show, "question": RunnablePassthrough()} |
    prompt | llm | StrOutputParser()`, also with `RunnablePassthrough.assign(context=...)`
    in front. What comes back is a dict where the chain's is one, with `ralmspec` beside
    the rest, and the text alone where it is a text.

    Args:
        chain: the chain.
        settings: fields of `SpeculativeRAG`. The workload is "one_shot" unless another is
            asked for: one retrieval and one call, as in the chain.

    Raises:
        ConfigError: a part of the chain could not be recognised; the message names it.
    """
    inner, name = _named(chain)
    steps = _steps(inner)
    if len(steps) == 2 and all(isinstance(step, RunnableAssign) for step in steps):
        fields = _retrieval_chain(*steps)
    else:
        fields = {**_prompted_chain(steps), "output": "answer"}
    return SpeculativeRAG(**{"name": name, "workload": "one_shot", **fields, **settings})


def _retrieval_chain(first: Any, second: Any) -> dict[str, Any]:
    """Take `create_retrieval_chain(...)` apart."""
    context = _context(_only(first, "context"), "context")
    combine, _ = _named(_only(second, "answer"))
    steps = _steps(combine)
    if not steps or not isinstance(inner := _named(steps[0])[0], RunnableAssign):
        raise _refused("the part that makes 'answer'", combine, "create_stuff_documents_chain(...)")
    show: Any = _only(inner, None)
    function: Any = getattr(show, "func", None)
    if getattr(function, "__qualname__", "") != _STUFF:
        raise _refused("the part that shows the documents", show, "create_stuff_documents_chain")
    [variable] = inner.mapper.steps__
    return {
        **_told(steps[1:]),
        "retriever": context.retriever,
        "question_key": context.question_key or "input",
        "document_variable_name": variable,
        "format_docs": lambda documents: str(function({variable: documents})),
    }


def _prompted_chain(steps: list[Runnable[Any, Any]]) -> dict[str, Any]:
    """Take `{...} | prompt | llm | parser` apart."""
    if not steps:
        raise _refused("the chain", None, "a sequence with a retriever, a prompt and a model")
    first, told = steps[0], _told(steps[1:])
    if isinstance(first, RunnableAssign):
        places: Mapping[str, Runnable[Any, Any]] = first.mapper.steps__
        passed = False
    elif isinstance(first, RunnableParallel):
        places, passed = first.steps__, True
    else:
        raise _refused("its first step", first, "a dict, or RunnablePassthrough.assign(...)")
    variable = next((name for name, part in places.items() if _has_retriever(part)), None)
    if variable is None:
        raise _refused("its first step", first, "a place with a retriever in it")
    context = _context(places[variable], variable)
    rest = {name: part for name, part in places.items() if name != variable}
    question = _question_variable(rest, context.question_key) if passed else None
    if not passed and rest:
        raise _refused(f"{next(iter(rest))!r} beside the documents", first, "nothing else assigned")
    return {
        **told,
        "retriever": context.retriever,
        "question_key": question or context.question_key or "input",
        "document_variable_name": variable,
        "format_docs": context.show or _as_python_shows_it,
    }


def _question_variable(rest: Mapping[str, Runnable[Any, Any]], key: str | None) -> str | None:
    """Find the prompt's variable for the question; all others must be passed on as they are."""
    question = None
    for name, part in rest.items():
        if type(part) is RunnablePassthrough and part.func is None and key is None:
            question = name
        elif (selected := _selected(part)) is None or selected != name:
            expected = "RunnablePassthrough(), or itemgetter of the same name"
            raise _refused(f"what stands at {name!r}", part, expected)
    return question


def _told(steps: list[Runnable[Any, Any]]) -> dict[str, Any]:
    """Find prompt, model and parser."""
    if len(steps) != 3:
        found = " | ".join(type(step).__name__ for step in steps) or "nothing"
        raise ConfigError(
            f"speculate() expects prompt | model | parser at the end of the chain, got {found}. "
            f"A chain that gives a message gets StrOutputParser() at its end. {_ADVICE}"
        )
    prompt, llm, parser = steps
    if not isinstance(prompt, BasePromptTemplate):
        raise _refused("the step before the model", prompt, "a prompt template")
    if not isinstance(unwrapped(llm).model, BaseLanguageModel):
        raise _refused("the step behind the prompt", llm, "a model")
    if not isinstance(parser, BaseOutputParser):
        raise _refused("the step behind the model", parser, "an output parser")
    text = type(parser) is StrOutputParser
    return {"prompt": prompt, "llm": llm, "output_parser": None if text else parser}


def _context(part: Runnable[Any, Any], name: str) -> _Context:
    """Take `[selector |] retriever [| show]` apart."""
    steps = _steps(_named(part)[0])
    at = next((i for i, step in enumerate(steps) if _has_retriever(step)), None)
    if at is None or at > 1 or len(steps) - at > 2:
        raise _refused(f"what stands at {name!r}", part, "retriever, or retriever | function")
    key = None
    if at == 1 and (key := _selected(steps[0])) is None:
        raise _refused(
            "the step before the retriever", steps[0], "itemgetter of the question's key"
        )
    show: Any = steps[at + 1] if len(steps) > at + 1 else None
    if show is None:
        return _Context(steps[at], key, None)
    if not _is_plain_function(show):
        raise _refused("the step behind the retriever", show, "a function that shows documents")
    return _Context(steps[at], key, show.func)


def _is_plain_function(part: Any) -> bool:
    """Whether a step is a function of its input alone, the same for all ways of calling it."""
    if type(part) is not RunnableLambda or not hasattr(part, "func") or hasattr(part, "afunc"):
        return False
    return not accepts_config(part.func) and not accepts_run_manager(part.func)


def _selected(part: Runnable[Any, Any]) -> str | None:
    """Give the key that a selector takes out of a dict: `itemgetter(key)`, `lambda x: x[key]`.

    Functions are read, not run, and only these: another one may look at more than a key.
    """
    if isinstance(part, RunnablePick):
        return part.keys if isinstance(part.keys, str) else None
    function = getattr(part, "func", None)
    if not _is_plain_function(part):
        return None
    if type(function) is itemgetter:
        keys = function.__reduce__()[1]
        return keys[0] if len(keys) == 1 and isinstance(keys[0], str) else None
    code, pattern = getattr(function, "__code__", None), _TAKES_A_KEY.__code__
    if code is None or code.co_code != pattern.co_code or code.co_argcount != 1:
        return None
    key = code.co_consts[pattern.co_consts.index("key")]
    return key if isinstance(key, str) else None


def _has_retriever(part: Runnable[Any, Any]) -> bool:
    """Whether a part is a retriever, or begins with one."""
    inner = concrete(part, {}, {}).runnable
    if isinstance(inner, RunnableSequence):
        return any(_has_retriever(step) for step in inner.steps)
    return isinstance(inner, BaseRetriever)


def _only(assign: RunnableAssign, name: str | None) -> Runnable[Any, Any]:
    """Give the one thing that is assigned."""
    places = assign.mapper.steps__
    if len(places) != 1 or (name is not None and name not in places):
        wanted = "one assignment" if name is None else f"one assignment, of {name!r}"
        raise _refused(f"the assignment of {list(places)}", assign, wanted)
    return next(iter(places.values()))


def _steps(part: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    return list(part.steps) if isinstance(part, RunnableSequence) else [part]


def _named(part: Runnable[Any, Any]) -> tuple[Runnable[Any, Any], str | None]:
    """Take the run name off a chain; what else is bound to it cannot be taken over."""
    name = None
    while type(part) is RunnableBinding and not isinstance(part.bound, BaseRetriever):
        beside = {key for key, value in part.config.items() if value} - {"run_name"}
        if part.kwargs or part.config_factories or beside:
            bound = sorted(beside | set(part.kwargs)) or ["listeners"]
            raise ConfigError(
                f"speculate() cannot take over what is bound to the chain: {', '.join(bound)}. "
                "Bind it to what speculate() gives back."
            )
        name = name or part.config.get("run_name")
        part = part.bound
    return part, name


def _as_python_shows_it(documents: list[Document]) -> str:
    return f"{documents}"  # what a prompt makes of a list


def _refused(what: str, got: Any, wanted: str) -> ConfigError:
    return ConfigError(
        f"speculate() could not recognise {what}: expected {wanted}, "
        f"got {type(got).__name__}. {_ADVICE}"
    )
