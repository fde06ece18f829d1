"""The loops that a user writes by hand, as runnables: sync and async, invoked and streamed."""

import re
from collections.abc import Generator
from functools import reduce
from operator import add
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from tests.langchain.by_hand import cut, last_words, prompted

_SENTENCE = re.compile(r".*?[.!?]+[\"')]*(?=\s)", flags=re.DOTALL)

Flow = Generator[tuple[str, Any], Any, dict[str, Any]]


def loop(question: str, workload: str, stop: tuple[str, ...] = ()) -> Flow:
    """Ask for what is to be searched and written, step by step."""
    context: list[Document] = []
    text = ""

    def take(found: list[Document]) -> str:
        context.extend([one for one in found if one not in context])
        return prompted(found, question)

    if workload == "one_shot":
        prompt = take((yield "search", question))
        text, _ = yield "write", (prompt, "", None)
    for step in range({"one_shot": 0, "interval": 6, "sentences": 4}[workload]):
        query = question if workload == "sentences" and not step else last_words(question, text, 32)
        prompt = take((yield "search", query))
        bound = 4 if workload == "interval" else 12
        piece, ended = yield "write", (prompt, text, bound)
        found = _SENTENCE.match(piece) if workload == "sentences" else None
        text += found.group() if found else piece
        stopped = cut(text, stop)
        if stopped is not None:
            text = stopped
            break
        if not piece or (ended and (not found or not piece[found.end() :].strip())):
            break
    return {"input": question, "context": context, "answer": text}


def by_hand(  # noqa: C901 two loops, each read from the top
    llm: Any, retriever: Any, workload: str, *, streams: bool = False, stop: tuple[str, ...] = ()
) -> Runnable[Any, dict[str, Any]]:
    """Make the loop of this model and this retriever."""

    def run(question: str, config: RunnableConfig) -> dict[str, Any]:
        flow, result = loop(question, workload, stop), None
        while True:
            try:
                kind, value = flow.send(result)
            except StopIteration as end:
                return dict(end.value)
            if kind == "search":
                result = retriever.invoke(value, config)
            else:
                given, arguments = _call(llm, *value, stop)
                if streams:
                    output = reduce(add, llm.stream(given, config, **arguments))
                else:
                    output = llm.invoke(given, config, **arguments)
                result = _read(output, arguments)

    async def arun(question: str, config: RunnableConfig) -> dict[str, Any]:
        flow, result = loop(question, workload, stop), None
        while True:
            try:
                kind, value = flow.send(result)
            except StopIteration as end:
                return dict(end.value)
            if kind == "search":
                result = await retriever.ainvoke(value, config)
            else:
                given, arguments = _call(llm, *value, stop)
                if streams:
                    chunks = [one async for one in llm.astream(given, config, **arguments)]
                    output = reduce(add, chunks)
                else:
                    output = await llm.ainvoke(given, config, **arguments)
                result = _read(output, arguments)

    return RunnableLambda(run, afunc=arun, name="SpeculativeRAG")


def _call(
    llm: Any, prompt: str, text: str, bound: int | None, stop: tuple[str, ...]
) -> tuple[Any, dict[str, Any]]:
    arguments = {} if bound is None else {"max_tokens": bound}
    if stop:
        arguments["stop"] = list(stop)
    if isinstance(llm, BaseChatModel) and text:
        return [("user", prompt), AIMessage(text)], arguments
    return prompt + text, arguments


def _read(output: Any, arguments: dict[str, Any]) -> tuple[str, bool]:
    """Give the text, and whether the model came to an end: it wrote less than it might have."""
    text = output if isinstance(output, str) else str(output.text)
    return text, len(text.split()) < arguments.get("max_tokens", 24)
