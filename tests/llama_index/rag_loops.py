"""The loops that a user writes by hand with LlamaIndex's own objects, as a query engine."""

import re
from collections.abc import Generator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import Response
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from tests.llama_index.by_hand import cut, last_words

_SENTENCE = re.compile(r".*?[.!?]+[\"')]*(?=\s)", flags=re.DOTALL)
_STEPS = {"interval": (6, 4), "sentences": (4, 12)}  # so many, of so many tokens

Flow = Generator[tuple[str, Any], Any, Response]


def loop(bundle: QueryBundle, workload: str, stop: tuple[str, ...] = ()) -> Flow:
    """Ask for what is to be searched and written, step by step."""
    steps, bound = _STEPS[workload]
    question, text = bundle.query_str, ""
    nodes: dict[str, NodeWithScore] = {}
    for _ in range(steps):
        asked = QueryBundle(last_words(question, text, 32)) if text else bundle
        found = yield "search", asked
        for one in found:
            nodes.setdefault(one.node.node_id, one)
        piece, ended = yield "write", (found, question, text, bound)
        sentence = _SENTENCE.match(piece) if workload == "sentences" else None
        text += sentence.group() if sentence else piece
        stopped = cut(text, stop)
        if stopped is not None:
            text = stopped
            break
        if not piece or (ended and (not sentence or not piece[sentence.end() :].strip())):
            break
    return Response(text, list(nodes.values()), {id_: one.metadata for id_, one in nodes.items()})


class LoopByHand(RetrieverQueryEngine):
    """Answers by one of these loops, with the parts of a query engine."""

    def __init__(self, *parts: Any, workload: str, stop: tuple[str, ...] = ()) -> None:
        super().__init__(*parts)
        self._workload, self._stop = workload, stop

    def _query(self, query_bundle: QueryBundle) -> Response:
        payload = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            flow, result = loop(query_bundle, self._workload, self._stop), None
            while True:
                try:
                    kind, value = flow.send(result)
                except StopIteration as end:
                    event.on_end(payload={EventPayload.RESPONSE: end.value})
                    return end.value
                if kind == "search":
                    result = self._processed(self._retriever.retrieve(value), query_bundle)
                else:
                    method, given, arguments = self._call(*value)
                    result = _read(getattr(self._llm, method)(given, **arguments))

    async def _aquery(self, query_bundle: QueryBundle) -> Response:
        payload = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            flow, result = loop(query_bundle, self._workload, self._stop), None
            while True:
                try:
                    kind, value = flow.send(result)
                except StopIteration as end:
                    event.on_end(payload={EventPayload.RESPONSE: end.value})
                    return end.value
                if kind == "search":
                    found = await self._retriever.aretrieve(value)
                    for one in self._node_postprocessors:
                        found = await one.apostprocess_nodes(found, query_bundle=query_bundle)
                    result = found
                else:
                    method, given, arguments = self._call(*value)
                    result = _read(await getattr(self._llm, f"a{method}")(given, **arguments))

    def _processed(self, nodes: list[NodeWithScore], bundle: QueryBundle) -> list[NodeWithScore]:
        return self._apply_node_postprocessors(nodes, query_bundle=bundle)

    @property
    def _llm(self) -> Any:
        return self._response_synthesizer._llm

    def _call(
        self, nodes: list[NodeWithScore], question: str, text: str, bound: int
    ) -> tuple[str, Any, dict[str, Any]]:
        """Give the model's method, and what it is called with."""
        llm: Any = self._llm
        template = self._response_synthesizer._text_qa_template
        shown = (one.node.get_content(metadata_mode=MetadataMode.LLM) for one in nodes)
        given = {"context_str": "\n\n".join(shown), "query_str": question}
        arguments: dict[str, Any] = {"max_tokens": bound}
        if self._stop:
            arguments["stop"] = list(self._stop)
        if llm.metadata.is_chat_model:
            messages = llm._get_messages(template, **given)
            if text:
                messages = [*messages, ChatMessage(role=MessageRole.ASSISTANT, content=text)]
            return "chat", messages, arguments
        prompt = llm._get_prompt(template, **given)
        return "complete", prompt + text, {"formatted": True, **arguments}


def _read(reply: Any) -> tuple[str, bool]:
    text = reply.message.content if hasattr(reply, "message") else reply.text
    return text or "", reply.raw["choices"][0]["finish_reason"] == "stop"
