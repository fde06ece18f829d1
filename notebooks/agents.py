# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Agents that do not wait for their tools
#
# You have an agent: a model, and a tool that searches.
# This notebook lets the model run while the tool does, checks that nothing that can be seen changes, and measures.
#
# The next cell installs what it needs, if it is not there; after that no network is used: the documents come with the package, and the model is a script.

# %%
from importlib.util import find_spec

if not all(map(find_spec, ('langchain_ralmspec', 'langchain', 'matplotlib'))):
    get_ipython().run_line_magic("pip", 'install --quiet "ralmspec-plugins[langchain-agents,plots,notebooks]"')

# %%
import asyncio
import json
import statistics
import time

from IPython.display import SVG, display
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import agenerate_from_stream
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from matplotlib import pyplot as plt

from langchain_ralmspec import SpeculativeTools, speculative_tool
from ralmspec_plugins.demo import make_world
from ralmspec_plugins.retrieval import HashingEncoder

# %% [markdown]
# ## What you have
#
# Documents: an invented world. Questions about it.

# %%
world = make_world(seed=7, passages=200)
documents = [
    Document(id=one.id, page_content=one.text, metadata={"title": one.title})
    for one in world.passages()
]
questions = [one.prompt.strip() for one in world.questions(6, seed=0)]

print(questions[0])


# %% [markdown]
# A store. The embedder is a stand-in for yours: it counts words.


# %%
class WordCounts(Embeddings):
    def __init__(self):
        self.encode = HashingEncoder(1024)

    def embed_query(self, text):
        return self.encode(text).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


store = InMemoryVectorStore(WordCounts())
ids = store.add_documents(documents)


# %% [markdown]
# A retriever that is far away: 200 ms to the store and back.
# (With yours, leave this out.)


# %%
ROUND_TRIP_S = 0.2


class FarAway(BaseRetriever):
    near: BaseRetriever

    def _get_relevant_documents(self, query, *, run_manager):
        time.sleep(ROUND_TRIP_S)
        return self.near.invoke(query)

    async def _aget_relevant_documents(self, query, *, run_manager):
        await asyncio.sleep(ROUND_TRIP_S)
        return await self.near.ainvoke(query)


near = store.as_retriever(search_kwargs={"k": 2})
far = FarAway(near=near)


# %% [markdown]
# A model. This one is a script: it searches for the question, then for the first document that it has read, and quotes what it found.
# It streams, and takes 150 ms for a reply, as a small hosted model does.
# With a provider, put its chat model here: `ChatOpenAI(model=...)`, `ChatAnthropic(model=...)`, ...


# %%
class Script(BaseChatModel):
    @property
    def _llm_type(self):
        return "script"

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[one.name for one in tools])

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise NotImplementedError("it is called from an event loop")

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return await agenerate_from_stream(self._astream(messages, stop, **kwargs))

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        found = [one.text for one in messages if isinstance(one, ToolMessage)]
        for word in ("Let ", "me ", "see. "):
            await asyncio.sleep(0.05)
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        if len(found) < 2:
            query = found[-1].split(".")[0] if found else messages[0].text
            call = {
                "name": "search",
                "args": json.dumps({"query": query}),
                "id": f"call-{len(found)}",
                "index": 0,
            }
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[call]))
        else:
            yield ChatGenerationChunk(message=AIMessageChunk(found[-1].split("\n")[0]))


# %% [markdown]
# ## The agent as it is
#
# `speculative_tool` is LangChain's retriever tool, with the documents as the message's artifact.
# Without the middleware it is a tool like any other.

# %%
search = speculative_tool(far, replica=near)
plain = create_agent(Script(), [search])
asked = {"messages": [("user", questions[0])]}

before = await plain.ainvoke(asked)
print(before["messages"][-1].text)

# %% [markdown]
# ## The agent ahead of its tool
#
# One line more.
# What the tool will return is guessed by a `replica`: the same documents, near by; here it is always right.
# Without one, a guess is what the same call returned before, or what your own function says: `SpeculativeTools(guess)`.

# %%
ahead = SpeculativeTools()
fast = create_agent(Script(), [search], middleware=[ahead])
after = await fast.ainvoke(asked)


def shown(state):
    return [(one.type, one.content, getattr(one, "tool_calls", None)) for one in state["messages"]]


assert shown(before) == shown(after)
print(ahead.stats)


# %% [markdown]
# Streams are the same, too: what was dropped is not shown, and what was kept is told once.


# %%
async def stream(agent):
    modes = ["updates", "messages"]
    items = [item async for item in agent.astream(asked, stream_mode=modes)]
    return [(mode, item[0].content if mode == "messages" else list(item)) for mode, item in items]


streamed = await stream(plain)
assert len(streamed) > 10
assert streamed == await stream(fast)


# %% [markdown]
# ## Further ahead
#
# A reply that was made ahead names the next search.
# The tool is read-only, so it may be called at once: `depth` says how many replies ahead.


# %%
async def seconds(agent):
    taken = []
    for question in questions:
        started = time.perf_counter()
        await agent.ainvoke({"messages": [("user", question)]})
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


deep = SpeculativeTools(depth=3)
deepest = create_agent(Script(), [search], middleware=[deep])
assert shown(before) == shown(await deepest.ainvoke(asked))

times = {
    "plain": await seconds(plain),
    "one ahead": await seconds(fast),
    "three ahead": await seconds(deepest),
}
for name, taken in times.items():
    print(f"{name:12} {taken:.2f} s")


# %%
def bars(times):
    scale = 400 / max(times.values())
    rows = [
        f'<text x="0" y="{20 + 30 * n}">{name}</text>'
        f'<rect x="110" y="{6 + 30 * n}" width="{taken * scale:.0f}" height="18" fill="#4477aa"/>'
        f'<text x="{118 + taken * scale:.0f}" y="{20 + 30 * n}">{taken:.2f} s</text>'
        for n, (name, taken) in enumerate(times.items())
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="600" height="100" '
        f'font-family="sans-serif" font-size="14">{"".join(rows)}</svg>'
    )


display(SVG(bars(times)))

# %% [markdown]
# ## By the tool's latency
#
# One question again, with a tool that takes longer or shorter: three replies ahead against none.

# %%
latencies_s = (0.05, 0.1, 0.2, 0.4)
speedups, rates = [], []
for ROUND_TRIP_S in latencies_s:
    taken, was = {}, deep.stats
    for name, agent in (("plain", plain), ("three ahead", deepest)):
        started = time.perf_counter()
        assert shown(before) == shown(await agent.ainvoke(asked))
        taken[name] = time.perf_counter() - started
    speedups.append(taken["plain"] / taken["three ahead"])
    now = deep.stats
    rates.append((now.right - was.right) / max(1, now.guesses - was.guesses))
ROUND_TRIP_S = 0.2

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
milliseconds = [1000 * one for one in latencies_s]
left.plot(milliseconds, speedups, marker="o")
left.axhline(1, color="grey", linestyle=":")
left.set(xlabel="a call of the tool, ms", ylabel="times as fast as plain", ylim=(0, None))
right.plot(milliseconds, rates, marker="o")
right.set(xlabel="a call of the tool, ms", ylabel="share of right guesses", ylim=(0, 1.05))
plt.show()


# %% [markdown]
# ## What wrong guesses cost
#
# A reply made on a wrong guess is dropped; the host's own call is made as always.
# `max_wasted_calls` bounds how often that happens in a run, and the numbers say how often it did.

# %%
wrong = SpeculativeTools(lambda call: "nothing of the kind", max_wasted_calls=1)
tool = speculative_tool(far)  # no replica: the function guesses
agent = create_agent(Script(), [tool], middleware=[wrong])

assert shown(before) == shown(await agent.ainvoke(asked))
print(wrong.stats)

# %% [markdown]
# ## With your own
#
# ```python
# agent = create_agent(
#     "openai:gpt-5.5",
#     tools=[speculative_tool(my_retriever), ...],
#     middleware=[my_middleware, SpeculativeTools()],
# )
# ```
#
# LlamaIndex: `speculate(agent)` in `llama_index_ralmspec` takes a `FunctionAgent`, a `ReActAgent` or an `AgentWorkflow`.
# When nothing is made ahead, and all settings: `docs/agents.md`.
