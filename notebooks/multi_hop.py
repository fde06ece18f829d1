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
# # Questions that take several searches
#
# "Where is the book kept that the hero who won the battle of Osk wrote?"
# The battle's passage names the hero, the hero's the book, and the book's the place: three searches, each of which needs what the one before found.
# This notebook writes the next turns while the searches are out, checks that the answers stay what they were, and measures.
#
# The next cell installs what it needs, if it is not there; after that no network is used: the passages come with the package, and the model is a script.

# %%
from importlib.util import find_spec

if not all(map(find_spec, ('langchain_ralmspec', 'langchain_core', 'matplotlib'))):
    get_ipython().run_line_magic("pip", 'install --quiet "ralmspec-plugins[langchain,plots,notebooks]"')

# %%
import re
import statistics
import time

from IPython.display import SVG, display
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import LLM
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from matplotlib import pyplot as plt

from langchain_ralmspec import SpeculativeRAG, stats_of
from ralmspec_plugins import Continuous, timeline
from ralmspec_plugins.demo import make_world
from ralmspec_plugins.demo.hops import count_hops, hop_question
from ralmspec_plugins.retrieval import HashingEncoder

# %% [markdown]
# ## What you have
#
# Documents: an invented world. Questions about it that take three of them, with their right answers.

# %%
world = make_world(seed=7, passages=200)
documents = [
    Document(id=one.id, page_content=one.text, metadata={"title": one.title})
    for one in world.passages()
]
questions = [hop_question(world, one.subject, hops=3) for one in world.questions(6, seed=0)]

print(questions[0].prompt, questions[0].answer)


# %% [markdown]
# A store, and a retriever that is far away: 200 ms to the store and back.
# The embedder is a stand-in for yours: it counts words.


# %%
class WordCounts(Embeddings):
    def __init__(self):
        self.encode = HashingEncoder(4096)

    def embed_query(self, text):
        return self.encode(text).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


ROUND_TRIP_S = 0.2


class FarAway(BaseRetriever):
    near: BaseRetriever

    def _get_relevant_documents(self, query, *, run_manager):
        time.sleep(ROUND_TRIP_S)
        return self.near.invoke(query)


store = InMemoryVectorStore(WordCounts())
ids = store.add_documents(documents)
near = store.as_retriever(search_kwargs={"k": 1})
far = FarAway(near=near)


# %% [markdown]
# A model that asks in tags, as Search-R1's do.
# This one is a script: it reads the next name out of the last passage that it was given, and asks for that, until it has read three.
# It takes 100 ms for a turn.
# With yours, say in its prompt how to ask.


# %%
FOLLOWS = (
    "is the author of|is read because of|is on a shelf at|stays in the library at|"
    "was the field of|heard the swords of|brought glory to|made the name of"
)


class Script(LLM):
    @property
    def _llm_type(self):
        return "script"

    def _call(self, prompt, stop=None, run_manager=None, **kwargs):
        time.sleep(0.1)
        read = re.findall("<information>(.*?)</information>", prompt, re.DOTALL)
        if not read:
            return "I look for <search>" + re.findall("[A-Z][a-z]+", prompt)[-1]
        found = re.search(f"(?:{FOLLOWS}) ([A-Z][a-z]+)", read[-1])
        name = found[1] if found else "nobody"
        return f"It is {name}. " + ("<answer>" if len(read) == 3 else "<search>") + name


prompt = PromptTemplate.from_template("{context}{input}")

# %% [markdown]
# ## One hop after the other
#
# Each passage is put into the text, between tags, and the model writes on.

# %%
settings = {"workload": "multi_hop", "prompt": prompt, "bound": "max_tokens", "report": True}
plain = SpeculativeRAG.from_llm(Script(), far, speculate=False, **settings)
before = plain.invoke(questions[0].prompt)

print(before["answer"])
for document in before["context"]:
    print("-", document.metadata["title"], "-", document.page_content[:60])

# %% [markdown]
# ## Hops ahead
#
# What a search will find is guessed by a `replica`: the same documents, near by.
# The next turn is written with the guess, its search starts, and so on, three hops deep; hops are committed in order.

# %%
ahead = SpeculativeRAG.from_llm(
    Script(), far, replica=near, schedule=Continuous(window=3, lanes=3), **settings
)
after = ahead.invoke(questions[0].prompt)

assert before["answer"] == after["answer"]
assert before["context"] == after["context"]

# %% [markdown]
# Every answer is the plain one, and right.


# %%
def asked(rag):
    taken = []
    replies = []
    for question in questions:
        started = time.perf_counter()
        replies.append(rag.invoke(question.prompt))
        taken.append(time.perf_counter() - started)
    return replies, statistics.median(taken)


slow, plain_s = asked(plain)
fast, ahead_s = asked(ahead)
for question, one, other in zip(questions, slow, fast, strict=True):
    assert one["answer"] == other["answer"]
    assert one["context"] == other["context"]
    assert count_hops(one["answer"], question).answered

print(f"plain {plain_s:.2f} s, ahead {ahead_s:.2f} s")

# %% [markdown]
# Where the time went, for the last question:

# %%
runs = {"plain": stats_of(slow[-1]), "ahead": stats_of(fast[-1])}
display(SVG(timeline.figure(runs, title=questions[-1].prompt.strip())))


# %% [markdown]
# ## By the store's latency
#
# One question again, with stores at other distances; a turn of the model takes 100 ms.

# %%
latencies_s = (0.0, 0.05, 0.1, 0.2, 0.4)
speedups, rates = [], []
for ROUND_TRIP_S in latencies_s:
    replies = [rag.invoke(questions[0].prompt) for rag in (plain, ahead)]
    slow_stats, fast_stats = map(stats_of, replies)
    assert replies[0]["answer"] == replies[1]["answer"]
    speedups.append(slow_stats.wall_s / fast_stats.wall_s)
    rates.append(fast_stats.guess_rate or 0.0)
ROUND_TRIP_S = 0.2

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
milliseconds = [1000 * one for one in latencies_s]
left.plot(milliseconds, speedups, marker="o")
left.axhline(1, color="grey", linestyle=":")
left.set(xlabel="a round trip, ms", ylabel="times as fast as plain", ylim=(0, None))
right.plot(milliseconds, rates, marker="o")
right.set(xlabel="a round trip, ms", ylabel="share of right guesses", ylim=(0, 1.05))
plt.show()


# %% [markdown]
# ## What wrong guesses cost
#
# Here every guess is wrong: each turn is written again with what was found, and the answer stays the same.


# %%
class Wrong(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(id="none", page_content="Nothing of the kind.")]


wrong = SpeculativeRAG.from_llm(
    Script(), far, replica=Wrong(), schedule=Continuous(window=3, lanes=3), **settings
)
reply = wrong.invoke(questions[0].prompt)

assert before["answer"] == reply["answer"]
print(f"{stats_of(reply).wall_s:.2f} s, plain {stats_of(before).wall_s:.2f} s")

# %% [markdown]
# ## With your own
#
# ```python
# rag = SpeculativeRAG.from_llm(llm, retriever, workload="multi_hop", prompt=how_to_ask)
# ```
#
# IRCoT's thoughts, Self-Ask's questions, or tags of your own: `functools.partial(MultiHop, hops="ircot", max_hops=3)` as the workload.
# LlamaIndex: `SpeculativeQueryEngine.from_args(retriever, workload="multi_hop", ...)`.
# What each format does, FLARE and Iter-RetGen: `docs/workloads.md`.
