"""Runs in a process of its own: takes `vars()` of all of langchain_core before and after our use.

Everything that is loaded of the host is compared by identity, value by value; of lists, dicts
and sets also what they hold. Prints what is different, and how much was compared.
"""

import asyncio
import importlib
import json
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import langchain_core
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tracers.context import collect_runs
from langchain_core.vectorstores import InMemoryVectorStore

PROMPT = PromptTemplate.from_template("{context} {question}")


class Chat(BaseChatModel):
    """Writes four words; fails where it is told to."""

    max_tokens: int = 4

    @property
    def _llm_type(self) -> str:
        return "chat"

    def _words(self, messages: Any) -> list[str]:
        if "fail" in str(messages[0].content):
            raise ArithmeticError("asked to fail")
        return [f" {len(str(messages))}.", " two", " three", " four"]

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        message = AIMessage("".join(self._words(messages)))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in self._words(messages):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))


class Found(BaseRetriever):
    """Finds one of two documents."""

    lies: bool = False

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [Document(f"text {(len(query) + self.lies) % 2}")]


def snapshot() -> dict[tuple[str, ...], Any]:
    """Take the values of every module and class of the host, and what stands in containers."""
    found: dict[tuple[str, ...], Any] = {}
    modules = [(name, one) for name, one in sys.modules.items() if name.startswith(ROOT)]
    for name, module in modules:
        take(found, (name,), vars(module))
        for kind in list(vars(module).values()):
            if isinstance(kind, type) and kind.__module__.startswith(ROOT):
                getattr(kind, "__annotations__", None)  # Python makes a class' own when it is read
                take(found, (kind.__module__, kind.__qualname__), vars(kind))
    return found


ROOT = langchain_core.__name__


def take(found: dict[tuple[str, ...], Any], path: tuple[str, ...], values: Any) -> None:
    for name, value in list(values.items()):
        found[(*path, name)] = value
        if isinstance(value, dict):
            for key, one in list(value.items()):
                found[(*path, name, repr(key))] = one
        elif isinstance(value, list | set | frozenset | tuple):
            found[(*path, name, "holds")] = Held(value)


class Held:
    """What a container holds, by identity."""

    def __init__(self, values: Any) -> None:
        self.values = list(values)

    def same(self, other: Any) -> bool:
        mine, theirs = (sorted(map(id, one.values)) for one in (self, other))
        return mine == theirs


def use(runnable: Any, question: Any, broken: Any) -> int:
    """Ask in every way: whole, in pieces, awaited, with handlers, failing, given up."""
    config: Any = {"callbacks": [BaseCallbackHandler()], "tags": ["t"], "metadata": {"m": 1}}
    count = 0
    with collect_runs() as collected:
        runnable.invoke(question, config)
        count += len(list(runnable.stream(question, config)))
        runnable.batch([question, question])
    assert collected.traced_runs
    for failing in (runnable.invoke, lambda one: list(runnable.stream(one))):
        try:
            failing(broken)
        except ArithmeticError:
            count += 1
    stream = runnable.stream(question)
    next(stream)
    stream.close()
    return count + asyncio.run(ause(runnable, question, broken))


async def ause(runnable: Any, question: Any, broken: Any) -> int:
    count = len([one async for one in runnable.astream_events(question, version="v2")])
    count += len([one async for one in runnable.astream(question)])
    try:
        await runnable.ainvoke(broken)
    except ArithmeticError:
        count += 1
    try:
        await asyncio.wait_for(runnable.ainvoke(question), 0)
    except TimeoutError:
        count += 1
    astream = runnable.astream(question)
    await anext(astream)
    await astream.aclose()
    return count


def chain_over(retriever: Any) -> Any:
    """Make the host's chain, to use the host before anything is compared: it is lazy."""
    parts = {"context": retriever | str, "question": RunnablePassthrough()}
    return parts | PROMPT | Chat() | StrOutputParser()


def ours_over(retrievers: list[Any]) -> int:
    """Import our package, and use all of it."""
    from langchain_ralmspec import SpeculativeRAG, SpeculativeRetriever, speculate

    from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache

    count, ahead = 0, FixedStride(stride=3)
    for retriever in retrievers:
        settings: Any = {
            "continuation": "assistant",
            "schedule": ahead,
            "prompt": PROMPT,
            "report": True,
        }
        rag = SpeculativeRAG(
            retriever=retriever, llm=Chat(), replica=Found(lies=True), pool=None, **settings
        )
        count += use(rag, "who?", "fail?")
        guesses = rag.invoke("who?")["ralmspec"]["stats"]
        count += guesses["guesses"] - guesses["accepted"]  # wrong ones
        rag.close()
        fast = speculate(chain_over(retriever))
        count += use(fast, "who?", "fail?")
        fast.close()
        layer = SpeculativeRetriever(
            retriever=retriever, memo=QueryCache(), pool=SharedPassageCache()
        )
        count += len(layer.batch(["a", "b"])) + len(asyncio.run(layer.abatch(["c", "d"])))
        count += len(list(layer.stream("a"))) + len(layer.verify(["a"], [layer.guess("a")]))
        layer.close()
    return count


def main() -> None:
    """Compare, and print the outcome as JSON."""
    warnings.simplefilter("ignore")
    for found in pkgutil.walk_packages(langchain_core.__path__, f"{ROOT}."):
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            getattr(module, name)  # the host imports some of its names when they are asked for
    store = InMemoryVectorStore.from_texts(["one", "two"], DeterministicFakeEmbedding(size=8))
    retrievers = [Found(), store.as_retriever(search_kwargs={"k": 1})]
    for retriever in retrievers:
        use(chain_over(retriever), "who?", "fail?")
    assert "langchain_ralmspec" not in sys.modules
    before = snapshot()
    events = ours_over(retrievers)
    changed = changes(before)
    BaseRetriever.planted = True  # type: ignore[attr-defined]
    planted = changes(before)
    print(
        json.dumps(
            {"compared": len(before), "events": events, "changed": changed, "planted": planted}
        )
    )


def changes(before: dict[tuple[str, ...], Any]) -> list[str]:
    """Name what is not what it was."""
    after = snapshot()
    return sorted(
        ".".join(path)
        for path in before.keys() | after.keys()
        if path not in before or path not in after or not same(before[path], after[path])
    )


def same(one: Any, other: Any) -> bool:
    return one.same(other) if isinstance(one, Held) else one is other


if __name__ == "__main__":
    main()
