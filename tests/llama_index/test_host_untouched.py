"""Nothing of LlamaIndex is replaced: its classes and modules hold what they held before."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio
import sys

import llama_index.core
import llama_index.core.query_engine
import llama_index.core.response_synthesizers
import llama_index.core.retrievers
import llama_index_instrumentation
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.schema import TextNode
from tests.host_snapshot import changes, snapshot

HOST = ("llama_index", "llama_index_instrumentation")


class Words(CustomLLM):
    fails: bool = False

    @property
    def metadata(self):
        return LLMMetadata()

    def complete(self, prompt, formatted=False, **kwargs):
        if self.fails:
            raise RuntimeError("the model is out")
        return CompletionResponse(text=f"{len(prompt)} words. {prompt[-9:]}")

    def stream_complete(self, prompt, formatted=False, **kwargs):
        text = self.complete(prompt).text
        return (CompletionResponse(text=text[: at + 1], delta=text[at]) for at in range(len(text)))


nodes = [TextNode(id_=c, text=f"about {c}") for c in "abc"]
index = VectorStoreIndex(nodes, embed_model=MockEmbedding(4))
host = index.as_query_engine(llm=Words())
host.query("a")
asyncio.run(host.aquery("a"))
assert not [name for name in sys.modules if name.startswith('llama_index_ralmspec.')]
before = snapshot(HOST)
assert len(before) > 3000, len(before)

from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever
assert changes(before, snapshot(HOST)) == []


async def aborted(engine):
    task = asyncio.create_task(engine.aquery("a"))
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass


texts = []
SENTENCES = {"workload": "sentences", "max_tokens": 6, "bound": "max_tokens"}
for options in ({}, {"streaming": True}, SENTENCES):
    ours = SpeculativeQueryEngine.from_index(index, llm=Words(), **options)
    with ours:
        for question in "abca":
            texts.append(str(ours.query(question)))
        response = asyncio.run(ours.aquery("b"))
        asyncio.run(aborted(ours))
        stream = ours.query("c")
        if options.get("streaming"):
            next(stream.response_gen)
            stream.response_gen.close()
assert len(set(texts)) > 1, texts
broken = SpeculativeQueryEngine.from_index(index, llm=Words(fails=True))
for _ in range(2):
    try:
        broken.query("a")
    except RuntimeError as error:
        assert "out" in str(error)
    else:
        raise AssertionError("no error")
retriever = SpeculativeRetriever(index.as_retriever())
assert len(retriever.retrieve_batch(["a", "b"])) == 2
found = changes(before, snapshot(HOST))
assert found == [], found
print("untouched")
"""


def test_classes_and_modules_of_the_host_are_what_they_were() -> None:
    """After import, queries, streams, errors and aborts, in a process of its own."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'integrations'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["untouched"]), done.stderr
