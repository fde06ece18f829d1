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
# # LlamaIndex: the same responses, sooner
#
# You have an index and its query engine.
# This notebook puts `llama_index_ralmspec` in the engine's place, step by step, and checks at each step that the response stays what it was.
# Then it measures.
#
# The next cell installs what it needs, if it is not there; after that no network is used: documents and model come with the package.

# %%
from importlib.util import find_spec

if not all(map(find_spec, ('llama_index_ralmspec', 'transformers', 'matplotlib'))):
    get_ipython().run_line_magic("pip", 'install --quiet "ralmspec-plugins[llama-index,hf,plots,notebooks]" llama-index-llms-huggingface')

# %%
import re
import statistics
import time
from functools import partial

import torch
from IPython.display import SVG, display
from llama_index.core import PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.selectors import EmbeddingSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.llms.huggingface import HuggingFaceLLM
from matplotlib import pyplot as plt
from transformers.utils import logging

from llama_index_ralmspec import (
    CommitEvent,
    GuessEvent,
    RetrievalEvent,
    RollbackEvent,
    Scored,
    SpeculativeQueryEngine,
    SpeculativeRetriever,
    VerificationEvent,
    register_batch_search,
    stats_of,
)
from llama_index_ralmspec.stores.simple import simple_search
from ralmspec_plugins import QueryCache, SharedPassageCache, timeline
from ralmspec_plugins.demo import MODEL, count_facts, make_world
from ralmspec_plugins.retrieval import HashingEncoder
from ralmspec_plugins.workloads import Sentences

logging.disable_progress_bar()
torch.set_num_threads(1)  # the model is tiny; the other cores search

# %% [markdown]
# ## What you have
#
# Nodes: an invented world, one for each of its people, works, places and events.
# Nobody can know them by heart, so a right answer was read from the right node.

# %%
world = make_world(seed=7, passages=200)
shown = {"text_template": "{metadata_str}\n{content}", "metadata_template": "{value}"}
nodes = [
    TextNode(id_=one.id, text=one.text, metadata={"title": one.title}, **shown)
    for one in world.passages()
]
stories = world.questions(6, seed=0)
questions = [one.prompt.strip() for one in stories]

print(questions[0])
print(nodes[0].get_content())


# %% [markdown]
# An index, here over LlamaIndex' own vector store.
# The embedder is a stand-in for yours: it counts words, and names most of all.


# %%
count_words = HashingEncoder(1024)


class WordEmbedding(BaseEmbedding):
    """Hashes words into 1,024 places; no model, no network."""

    def _get_text_embedding(self, text):
        names = re.findall(r"[A-Z]\w+", text)
        return count_words(" ".join([text, *names * 20])).tolist()

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


index = VectorStoreIndex(nodes, embed_model=WordEmbedding())

# %% [markdown]
# A model: the demo's, with a million parameters, in LlamaIndex' `HuggingFaceLLM`.
# Any `LLM` goes here.

# %%
llm = HuggingFaceLLM(
    model_name=str(MODEL),
    tokenizer_name=str(MODEL),
    context_window=1024,
    max_new_tokens=80,
    generate_kwargs={"do_sample": False},
)

# %% [markdown]
# And the query engine of them, as LlamaIndex' documentation builds it.

# %%
parts = {
    "llm": llm,
    "similarity_top_k": 1,
    "text_qa_template": PromptTemplate("{context_str}\n\n\n{query_str}\n"),
}
host = index.as_query_engine(**parts)
response = host.query(questions[0])

print(response)
print(count_facts(str(response), stories[0], world))

# %% [markdown]
# ## One line
#
# `from_index` takes the place of `as_query_engine`; the arguments stay what they are.
# For an engine that is there already, it is `speculate(host)`.
# The response is the host's own: text, nodes, scores, metadata. `stats_of` has its numbers.

# %%
fast = SpeculativeQueryEngine.from_index(index, **parts)

for question in questions[:3]:
    expected, response = host.query(question), fast.query(question)
    assert response == expected

print(stats_of(response).searches, "round trip")

# %% [markdown]
# This engine searches once, so there is little to run ahead of.
# And one search is too few: the answer above read what the first node says, and made up the rest.
#
# ## The loop
#
# So the model is asked for a sentence at a time, and each sentence gets a search of its own, with the last 12 words as the query.
# By hand, with LlamaIndex' own objects:

# %%
SENTENCE = re.compile(r".*?[.!?]+(?=\s)", re.DOTALL)
retriever = index.as_retriever(similarity_top_k=1)
briefly = llm.model_copy(update={"max_new_tokens": 64})


def by_hand(question, sentences=6):
    text, used = "", {}
    for _ in range(sentences):
        query = " ".join(f"{question} {text}".split()[-12:]) if text else question
        found = retriever.retrieve(query)
        for one in found:
            used.setdefault(one.node_id, one)
        context = "\n\n".join(one.get_content("llm") for one in found)
        shown = parts["text_qa_template"].format(context_str=context, query_str=question)
        piece = briefly.complete(shown + text, formatted=True).text
        sentence = SENTENCE.match(piece)
        text += sentence.group() if sentence else piece
    return text, list(used.values())


text, used = by_hand(questions[0])
print(text)
print(count_facts(text, stories[0], world))

# %% [markdown]
# `workload="sentences"` is this loop; here with the numbers of the one by hand.
# It guesses what the next search will find, writes on, and takes back what a wrong guess had spoiled; the text, the nodes and their scores are those of the loop above.

# %%
looping = SpeculativeQueryEngine.from_index(
    index,
    **parts,
    workload=partial(Sentences, tokens=64, query_tokens=12, max_sentences=6),
)
response = looping.query(questions[0])

assert (response.response, response.source_nodes) == (text, used)
print(stats_of(response))

# %% [markdown]
# ## A local model, driven by tokens
#
# With `direct=True` a Hugging Face model is not called through its wrapper for each step.
# Its tokens and its key-value cache are kept, and there is a search every four tokens.
# That is another loop than the one by hand, which makes tokens of its text anew at every step; so here "the plain loop" is the same engine with `speculate=False`.

# %%
direct = partial(
    SpeculativeQueryEngine.from_args,
    llm=llm,
    text_qa_template=parts["text_qa_template"],
    workload="interval",
    direct=True,
    max_tokens=64,
)
ours = direct(retriever)
plain = ours.with_options(speculate=False)


def told(response):
    return response.response, response.source_nodes


response = ours.query(questions[0])
assert told(response) == told(plain.query(questions[0]))
print(response)


# %% [markdown]
# ## A store that takes its time
#
# The store above is in memory, and answers in a few milliseconds.
# The next one stands for a server: **each round trip waits 50 ms, and that wait is made up.**
# Everything else that is measured below really runs.

# %%
ROUND_TRIP_S = 0.05


class RemoteStore(SimpleVectorStore):
    """The same store, 50 ms away."""

    def query(self, query, **settings):
        time.sleep(ROUND_TRIP_S)
        return super().query(query, **settings)


# %% [markdown]
# Most servers take many queries in one round trip, but a LlamaIndex store is asked one at a time.
# For six stores the package knows the store's own batch call (`docs/llama_index.md` lists them); for any other you register it.
# It must find exactly what the store's single search finds, scores included; the store above is one of the six, so here its batch search only has to wait.


# %%
class RemoteSearch:
    """Searches many vectors in one round trip."""

    exact = True  # what a query finds does not depend on the others
    wide = True  # the best 20 begin with the best one

    def __init__(self, search):
        self._search = search
        self.name, self.metric, self.k = "RemoteStore", search.metric, search.k

    def search(self, vectors, k):
        time.sleep(ROUND_TRIP_S)
        return self._search.search(vectors, k)


register_batch_search(
    f"{RemoteStore.__module__}.RemoteStore",
    lambda retriever: RemoteSearch(simple_search(retriever)),
)

remote_index = VectorStoreIndex(
    nodes,
    storage_context=StorageContext.from_defaults(vector_store=RemoteStore()),
    embed_model=WordEmbedding(),
)
remote = remote_index.as_retriever(similarity_top_k=1)

# %% [markdown]
# ## Measured
#
# Five engines: without and with speculation over the local store; and over the remote one without speculation, with it but by single calls (`batching="off"`, as for a store that nobody registered), and with its batches.
# Each request starts with an empty pool (`pool=None`), so nothing is known from the one before.
# They take turns, in five rounds with another question each, and every response is compared with the plain one of its round.

# %%
cold = partial(direct, pool=None)
engines = {
    "local, plain": cold(retriever, speculate=False),
    "local, speculative": cold(retriever),
    "remote, plain": cold(remote, speculate=False),
    "remote, single calls": cold(remote, batching="off"),
    "remote, batches": cold(remote),
}
took = {name: [] for name in engines}
trips = {name: [] for name in engines}

for one in engines.values():
    one.query(questions[0])  # warm: threads, and the model's first pass
for question in questions[1:]:
    responses = {}
    for name, one in engines.items():
        started = time.perf_counter()
        responses[name] = one.query(question)
        took[name].append(time.perf_counter() - started)
        trips[name].append(stats_of(responses[name]).searches)
    for response in responses.values():
        assert told(response) == told(responses["local, plain"])

print(f"{'seconds a request':<22}{'median':>8}{'least':>8}{'most':>8}{'round trips':>13}")
for name, times in took.items():
    middle, asked = statistics.median(times), statistics.median(trips[name])
    print(f"{name:<22}{middle:8.2f}{min(times):8.2f}{max(times):8.2f}{asked:13}")

# %% [markdown]
# Read it so:
#
# - **Over the local store there is little to gain.**
#   Speculation hides searching behind writing; a search that takes next to nothing hides nothing, and a wrong guess costs some writing.
# - **Over the remote store most of the waiting goes.**
#   The writing stays: no request can be faster than its model, and its first search has nothing to hide behind.
# - Single calls go side by side, so they are waited for together, but the store is asked as often as before, or more often: a question that a wrong guess led to has been asked.
#   Batches save the store its calls too.
#
# So it pays where searches are slow next to the model's steps: remote, large, exact or reranked retrieval.
# `stats_of(response)` has the numbers to tell, `search_s` and `write_s`.
#
# ## What happened when

# %%
runs = {
    "speculative": stats_of(responses["remote, batches"]),
    "plain": stats_of(responses["remote, plain"]),
}
display(SVG(timeline.figure(runs, title=question, note="The store's 50 ms are made up.")))

# %% [markdown]
# ## By the store's latency
#
# One question again, with stores at other distances: plainly, and with batches.
# The further away the store, the more there is to hide; the guesses are as often right at any distance.

# %%
latencies_s = (0.0, 0.02, 0.05, 0.1, 0.2)
speedups, rates = [], []
for ROUND_TRIP_S in latencies_s:
    seconds = {}
    for name in ("remote, plain", "remote, batches"):
        started = time.perf_counter()
        response = engines[name].query(question)
        seconds[name] = time.perf_counter() - started
        assert told(response) == told(responses["local, plain"])
    speedups.append(seconds["remote, plain"] / seconds["remote, batches"])
    rates.append(stats_of(response).guess_rate or 0.0)
ROUND_TRIP_S = 0.05

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
milliseconds = [1000 * one for one in latencies_s]
left.plot(milliseconds, speedups, marker="o")
left.axhline(1, color="grey", linestyle=":")
left.set(xlabel="a round trip, ms", ylabel="times as fast as plain", ylim=(0, None))
right.plot(milliseconds, rates, marker="o")
right.set(xlabel="a round trip, ms", ylabel="share of right guesses", ylim=(0, 1.05))
plt.show()

# %% [markdown]
# ## Streaming
#
# `streaming=True` gives a `StreamingResponse`, as it does with the host's engine.
# Text comes as soon as it can no longer change: nothing that is streamed is ever taken back.

# %%
streaming = direct(remote, streaming=True)
text = ""
for piece in streaming.query(question).response_gen:
    text += piece
    print(piece, end="", flush=True)

assert text == responses["remote, plain"].response

# %% [markdown]
# ## In a router
#
# It goes where a query engine goes: into a tool, a router, an agent, a chat engine.
# This router chooses between the engine that searches again and again, for stories, and the one that searches once.

# %%
tools = [
    QueryEngineTool.from_defaults(fast, description="Who is it?"),
    QueryEngineTool.from_defaults(engines["remote, batches"], description="Tell the story"),
]
selector = EmbeddingSingleSelector.from_defaults(embed_model=WordEmbedding())
router = RouterQueryEngine(selector, tools, llm=llm)

assert str(router.query(question)) == responses["remote, plain"].response

# %% [markdown]
# ## The retriever alone
#
# `SpeculativeRetriever` goes where a retriever goes.
# It gives exactly what the wrapped one gives, with its scores.
# `retrieve_batch` is one round trip, and a `QueryCache`, which you give it only if the index does not change meanwhile, answers what was asked before.

# %%
sooner = SpeculativeRetriever(remote, memo=QueryCache(ttl_s=600), pool=SharedPassageCache())

assert sooner.retrieve_batch(questions) == [remote.retrieve(one) for one in questions]
assert sooner.retrieve(questions[0]) == remote.retrieve(questions[0])
print(sooner.stats)

over_it = RetrieverQueryEngine.from_args(
    sooner, llm=llm, text_qa_template=parts["text_qa_template"]
)
assert over_it.query(questions[0]) == host.query(questions[0])

# %% [markdown]
# Those who write loops of their own ask it for a guess, which costs no search, and have it checked later, many at a time.

# %%
query = "Tell more of " + questions[0].removeprefix("Tell the story of ")
guess = sooner.guess(query)
[verdict] = sooner.verify([query], [guess])

assert verdict.nodes == remote.retrieve(query)
print("guessed right" if verdict.right else "guessed wrong")

# %% [markdown]
# ## What is told
#
# Event and span handlers hear of each call when it is made, from the host itself; a call that is made ahead has the tag `SPECULATIVE`.
# Searches that were made together, guesses, and what came to count have events of our own.


# %%
class Heard(BaseEventHandler):
    """Keeps what it hears."""

    events: list = []

    def handle(self, event, **kwargs):
        self.events.append(event)


heard = Heard()
root = get_dispatcher()
root.add_event_handler(heard)
response = engines["remote, batches"].query(question)
root.event_handlers.remove(heard)

kinds = [type(event).__name__ for event in heard.events]
own = (GuessEvent, VerificationEvent, RetrievalEvent, CommitEvent, RollbackEvent)
print([kind for event, kind in zip(heard.events, kinds) if not isinstance(event, own)][:8])
right = [event.right for event in heard.events if isinstance(event, VerificationEvent)]

assert kinds.count("RetrievalEvent") == stats_of(response).segments
assert len(right) == stats_of(response).guesses

# %% [markdown]
# ## What to look at
#
# - `searches` and `queries`: round trips, and the queries in them; `batch_sizes` has them one by one.
# - `accepted` of `guesses`: few of them right, and a larger `prefetch`, or a `replica`, may help.
# - `segments` and `wasted_segments`: what was written for the answer, and what was thrown away. With a paid model the latter costs money.
# - `search_s`, `write_s`, `overlap_s`: where the time went, and how much of it was at once.

# %%
stats = stats_of(response)
print(stats)
print(
    f"searching {stats.search_s:.2f} s, writing {stats.write_s:.2f} s, at once {stats.overlap_s:.2f} s"
)

# %% [markdown]
# Where to go next: `docs/llama_index.md` says what each store and each class does, what is told to handlers, and what is not promised.

# %%
for one in (fast, looping, ours, streaming, sooner, *engines.values()):
    one.close()
