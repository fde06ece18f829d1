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
# # LangChain: the same answers, sooner
#
# You have a chain: a retriever, a prompt, a model.
# This notebook puts `langchain_ralmspec` in its place, step by step, and checks at each step that the answer stays what it was.
# Then it measures.
#
# The next cell installs what it needs, if it is not there; after that no network is used: documents and model come with the package.

# %%
from importlib.util import find_spec

if not all(map(find_spec, ('langchain_ralmspec', 'langchain_huggingface', 'matplotlib'))):
    get_ipython().run_line_magic("pip", 'install --quiet "ralmspec-plugins[langchain,hf,plots,notebooks]" langchain-huggingface')

# %%
import re
import statistics
import time
from functools import partial

import torch
from IPython.display import SVG, display
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFacePipeline
from matplotlib import pyplot as plt
from transformers.utils import logging

from langchain_ralmspec import (
    Scored,
    SpeculativeRAG,
    SpeculativeRetriever,
    register_batch_search,
    speculate,
    stats_of,
)
from ralmspec_plugins import QueryCache, SharedPassageCache, timeline
from ralmspec_plugins.demo import MODEL, count_facts, make_world
from ralmspec_plugins.retrieval import HashingEncoder
from ralmspec_plugins.workloads import Sentences

logging.disable_progress_bar()
torch.set_num_threads(1)  # the model is tiny; the other cores search

# %% [markdown]
# ## What you have
#
# Documents: an invented world, one passage for each of its people, works, places and events.
# Nobody can know them by heart, so a right answer was read from the right document.

# %%
world = make_world(seed=7, passages=200)
documents = [
    Document(id=one.id, page_content=one.text, metadata={"title": one.title})
    for one in world.passages()
]
stories = world.questions(6, seed=0)
questions = [one.prompt.strip() for one in stories]

print(questions[0])
print(documents[0].page_content)


# %% [markdown]
# A vector store, here LangChain's own.
# The embedder is a stand-in for yours: it counts words, and names most of all.


# %%
class WordEmbeddings(Embeddings):
    """Hashes words into 1,024 places; no model, no network."""

    def __init__(self):
        self._encode = HashingEncoder(1024)

    def embed_query(self, text):
        names = re.findall(r"[A-Z]\w+", text)
        return self._encode(" ".join([text, *names * 20])).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


store = InMemoryVectorStore.from_documents(documents, WordEmbeddings())
retriever = store.as_retriever(search_kwargs={"k": 1})

# %% [markdown]
# A model: the demo's, with a million parameters, in `langchain_huggingface`'s pipeline.
# Any `BaseLLM` or `BaseChatModel` goes here.

# %%
llm = HuggingFacePipeline.from_model_id(
    str(MODEL),
    task="text-generation",
    pipeline_kwargs={"do_sample": False, "return_full_text": False, "max_new_tokens": 80},
)


# %% [markdown]
# And the chain of them, as LangChain's documentation builds it.


# %%
def show(found):
    return "".join(f"{one.metadata['title']}\n{one.page_content}\n\n\n" for one in found)


prompt = PromptTemplate.from_template("{context}{input}\n")
chain = (
    {"context": retriever | show, "input": RunnablePassthrough()} | prompt | llm | StrOutputParser()
)

answer = chain.invoke(questions[0])
print(answer)
print(count_facts(answer, stories[0], world))

# %% [markdown]
# ## One line
#
# `speculate` takes the chain apart and gives back a runnable that answers alike.
# What it cannot recognise it refuses, and says which part.

# %%
fast = speculate(chain)

assert [fast.invoke(one) for one in questions[:3]] == [chain.invoke(one) for one in questions[:3]]

# %% [markdown]
# This chain searches once, so there is nothing yet to run ahead of.
# And one search is too few: the answer above read what the first document says, and made up the rest.
#
# ## The loop
#
# So the model is asked for a sentence at a time, and each sentence gets a search of its own, with the last 12 words as the query.
# By hand, with LangChain's own objects:

# %%
SENTENCE = re.compile(r".*?[.!?]+(?=\s)", re.DOTALL)


def by_hand(question, sentences=6):
    text, context = "", []
    for _ in range(sentences):
        query = " ".join(f"{question} {text}".split()[-12:]) if text else question
        found = retriever.invoke(query)
        context += [one for one in found if one not in context]
        shown = prompt.format(context=show(found), input=question)
        bound = {"max_new_tokens": 64, "return_full_text": False}
        piece = llm.invoke(shown + text, pipeline_kwargs=bound)
        sentence = SENTENCE.match(piece)
        text += sentence.group() if sentence else piece
    return context, text


context, answer = by_hand(questions[0])
print(answer)
print(count_facts(answer, stories[0], world))

# %% [markdown]
# `SpeculativeRAG` is this loop.
# It guesses what the next search will find, writes on, and takes back what a wrong guess had spoiled; the answer and its documents are those of the loop above.

# %%
rag = SpeculativeRAG(
    retriever=retriever,
    llm=llm,
    prompt=prompt,
    format_docs=show,
    workload=partial(Sentences, tokens=64, query_tokens=12, max_sentences=6),
    report=True,  # what it took, beside the answer
)
reply = rag.invoke(questions[0])

assert (reply["context"], reply["answer"]) == (context, answer)
print(stats_of(reply))

# %% [markdown]
# Like any runnable it takes a string or a dict with `input`, has `ainvoke`, `batch`, `stream` and `astream_events`, and goes behind `|`.
# In a batch the questions share their searches and what they found.

# %%
replies = rag.batch(questions[:2])

assert [one["answer"] for one in replies] == [by_hand(one)[1] for one in questions[:2]]
rag.close()

# %% [markdown]
# ## A local model, driven by tokens
#
# With `direct=True` a Hugging Face model is not called through its pipeline for each step.
# Its tokens and its key-value cache are kept, and there is a search every four tokens.
# That is another loop than the one by hand, which makes tokens of its text anew at every step; so here "the plain loop" is the same runnable with `speculate=False`.

# %%
direct = partial(
    SpeculativeRAG,
    llm=llm,
    prompt=prompt,
    format_docs=show,
    direct=True,
    max_tokens=96,
    report=True,
)
with_it, without = direct(retriever=retriever), direct(retriever=retriever, speculate=False)
reply, plain = with_it.invoke(questions[0]), without.invoke(questions[0])

assert (reply["context"], reply["answer"]) == (plain["context"], plain["answer"])
print(reply["answer"])


# %% [markdown]
# ## A store that takes its time
#
# The store above is in memory, and answers in a few milliseconds.
# The next one stands for a server: **each round trip waits 50 ms, and that wait is made up.**
# Everything else that is measured below really runs.

# %%
ROUND_TRIP_S = 0.05


class RemoteStore(InMemoryVectorStore):
    """The same store, 50 ms away."""

    def similarity_search(self, query, k=4, **settings):
        time.sleep(ROUND_TRIP_S)
        return super().similarity_search(query, k, **settings)


remote_store = RemoteStore.from_documents(documents, WordEmbeddings())
remote = remote_store.as_retriever(search_kwargs={"k": 1})


# %% [markdown]
# Most servers take many queries in one round trip, but LangChain's `batch` makes a call for each.
# For six stores the package knows the store's own batch call (`docs/langchain.md` lists them); for any other you register it.
# The class below says how: it must find exactly what the store's single search finds.


# %%
class RemoteSearch:
    """Searches many vectors in one round trip."""

    name = "RemoteStore"
    exact = True  # what a query finds does not depend on the others
    wide = True  # the best 20 begin with the best one
    metric = "cosine"

    def __init__(self, store, k):
        self._store = store
        self.k = k

    def relevance(self):
        return None

    def search(self, vectors, k):
        time.sleep(ROUND_TRIP_S)
        found = [self._store.similarity_search_with_score_by_vector(one, k) for one in vectors]
        rows = self._store.store
        return [
            [Scored(one, rows[one.id]["vector"], score) for one, score in best] for best in found
        ]


def remote_search(retriever):
    settings = retriever.search_kwargs
    return RemoteSearch(retriever.vectorstore, settings["k"]) if set(settings) == {"k"} else None


register_batch_search(f"{RemoteStore.__module__}.RemoteStore", remote_search)

# %% [markdown]
# ## Measured
#
# Five runnables: without and with speculation over the local store; and over the remote one without speculation, with it but by single calls (`batching="off"`, as for a store that nobody registered), and with its batches.
# Each request starts with an empty pool (`pool=None`), so nothing is known from the one before.
# They take turns, in five rounds with another question each, and every answer is compared with the plain one of its round.

# %%
cold = partial(direct, pool=None)
runnables = {
    "local, plain": cold(retriever=retriever, speculate=False),
    "local, speculative": cold(retriever=retriever),
    "remote, plain": cold(retriever=remote, speculate=False),
    "remote, single calls": cold(retriever=remote, batching="off"),
    "remote, batches": cold(retriever=remote),
}
took = {name: [] for name in runnables}
trips = {name: [] for name in runnables}

for one in runnables.values():
    one.invoke(questions[0], max_tokens=8)  # warm: threads, and the model's first pass
for question in questions[1:]:
    replies = {}
    for name, one in runnables.items():
        started = time.perf_counter()
        replies[name] = one.invoke(question)
        took[name].append(time.perf_counter() - started)
        trips[name].append(replies[name]["ralmspec"]["stats"]["searches"])
    right = replies["local, plain"]
    for reply in replies.values():
        assert (reply["context"], reply["answer"]) == (right["context"], right["answer"])

print(f"{'seconds a request':<22}{'median':>8}{'least':>8}{'most':>8}{'round trips':>13}")
for name, times in took.items():
    middle, asked = statistics.median(times), statistics.median(trips[name])
    print(f"{name:<22}{middle:8.2f}{min(times):8.2f}{max(times):8.2f}{asked:13}")

# %% [markdown]
# Read it so:
#
# - **Over the local store there is little to gain, or nothing.**
#   Speculation hides searching behind writing; a search that takes next to nothing hides nothing, and a wrong guess costs some writing.
# - **Over the remote store most of the waiting goes.**
#   The writing stays: no request can be faster than its model, and its first search has nothing to hide behind.
# - Single calls go side by side, so they are waited for together, but the store is asked as often as before, or more often: a question that a wrong guess led to has been asked.
#   Batches save the store its calls too.
#
# So it pays where searches are slow next to the model's steps: remote, large, exact or reranked retrieval.
# `stats_of(reply)` has the numbers to tell, `search_s` and `write_s`.
#
# ## What happened when

# %%
runs = {
    "speculative": stats_of(replies["remote, batches"]),
    "plain": stats_of(replies["remote, plain"]),
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
        reply = runnables[name].invoke(question)
        seconds[name] = time.perf_counter() - started
        assert reply["answer"] == right["answer"]
    speedups.append(seconds["remote, plain"] / seconds["remote, batches"])
    rates.append(stats_of(reply).guess_rate or 0.0)
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
# Text comes as soon as it can no longer change, documents as they are confirmed.
# Nothing that is streamed is ever taken back.

# %%
fast = runnables["remote, batches"]
text = ""
for piece in fast.stream(question):
    text += piece.get("answer", "")
    print(piece.get("answer", ""), end="", flush=True)

assert text == replies["remote, plain"]["answer"]

# %% [markdown]
# ## The retriever alone
#
# `SpeculativeRetriever` goes where a retriever goes, in an agent's tool for example.
# It gives exactly what the wrapped one gives.
# `batch` is one round trip, and a `QueryCache`, which you give it only if the index does not change meanwhile, answers what was asked before.

# %%
sooner = SpeculativeRetriever(
    retriever=remote, memo=QueryCache(ttl_s=600), pool=SharedPassageCache()
)

assert sooner.batch(questions) == [remote.invoke(one) for one in questions]
assert sooner.invoke(questions[0]) == remote.invoke(questions[0])
print(sooner.stats)

# %% [markdown]
# Those who write loops of their own ask it for a guess, which costs no search, and have it checked later, many at a time.

# %%
query = "Tell more of " + questions[0].removeprefix("Tell the story of ")
guess = sooner.guess(query)
[verdict] = sooner.verify([query], [guess])

assert verdict.documents == remote.invoke(query)
print("guessed right" if verdict.right else "guessed wrong")

# %% [markdown]
# ## What to look at
#
# - `searches` and `queries`: round trips, and the queries in them; `batch_sizes` has them one by one.
# - `accepted` of `guesses`: few of them right, and a larger `prefetch`, or a `replica`, may help.
# - `segments` and `wasted_segments`: what was written for the answer, and what was thrown away. With a paid model the latter costs money.
# - `search_s`, `write_s`, `overlap_s`: where the time went, and how much of it was at once.

# %%
stats = stats_of(replies["remote, batches"])
print(stats)
print(
    f"searching {stats.search_s:.2f} s, writing {stats.write_s:.2f} s, at once {stats.overlap_s:.2f} s"
)

# %% [markdown]
# Where to go next: `docs/langchain.md` says what each store and each model does, what is told to callbacks, and what is not promised.

# %%
for one in (with_it, without, *runnables.values()):
    one.close()
sooner.close()
