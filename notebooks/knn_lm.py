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
# # KNN-LM: a search for every token, and most of the waiting gone
#
# A KNN-LM is a language model with a datastore of hidden states beside it: each token is chosen with the help of its nearest neighbours in there.
# So it writes like a text that it was never trained on, and searches for every token.
# This notebook goes from a text to a datastore, writes with it plainly and speculatively, checks that every token and every neighbour is the same, and measures.
#
# The next cell installs what it needs, if it is not there; after that no network is used: text and model come with the package.

# %%
from importlib.util import find_spec

if not all(map(find_spec, ('transformers', 'faiss', 'langchain_core', 'matplotlib'))):
    get_ipython().run_line_magic("pip", 'install --quiet "ralmspec-plugins[hf,faiss,langchain,plots,notebooks]"')

# %%
import statistics
import tempfile
import time
from pathlib import Path

import torch
from IPython.display import SVG, display
from langchain_core.prompts import PromptTemplate
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from langchain_ralmspec import KNNLLM
from ralmspec_plugins import FixedStride, OptimalStride, Settings, timeline
from ralmspec_plugins.demo import MODEL, count_facts, make_world
from ralmspec_plugins.knn import KNNLanguageModel, NeighbourCache, build_datastore, open_search
from ralmspec_plugins.lm import Sampling

logging.disable_progress_bar()
torch.set_num_threads(1)  # the model is tiny; the other cores search

# %% [markdown]
# ## A text, and a model that does not know it
#
# The text: articles about the people, works, places and events of an invented world.
# Those that we are going to ask for are held out.

# %%
world = make_world(seed=7, passages=400)
stories = world.questions(6, seed=0)
asked = {one.subject for one in stories}
others = [world.question(one.name) for one in world.entities if one.name not in asked]
texts = [one.prompt + world.article(one) for one in others]
held_out = [one.prompt + world.article(one) for one in stories]

print(len(texts), "articles;", len(held_out), "are held out, such as")
print(held_out[0])

# %% [markdown]
# The model: the demo's, with a million parameters.
# It was trained on other worlds, to retell a passage that stands in front of the prompt.
# Here nothing stands in front.

# %%
model = AutoModelForCausalLM.from_pretrained(MODEL)
tokenizer = AutoTokenizer.from_pretrained(MODEL)

# %% [markdown]
# ## From the text to a datastore
#
# The model reads the texts once.
# For each token the datastore gets a key, the hidden state in front of it, and a value, the token.
# What is encoded is safe at once: if this is stopped half-way, the same call goes on where it was.

# %%
folder = tempfile.TemporaryDirectory()
place = Path(folder.name) / "store"
started = time.perf_counter()
store = build_datastore(texts, place, model, tokenizer, source="the demo's articles")

print(
    f"{len(store):,} entries of {store.about.documents} texts, {store.about.dimension} numbers each,"
)
print(f"built in {time.perf_counter() - started:.1f} s")
for file in sorted(place.iterdir()):
    print(f"{file.name:20}{file.stat().st_size:12,} bytes")


# %% [markdown]
# ## Plainly, and speculatively
#
# `plain=True` is the definition of the right text: search, choose a token, read it, and so on.
# Without it neighbours are guessed from a cache: those that were found, and the ten entries behind each of them.
# The model writes on with the guess, and several guesses are checked in one search.
# A guess is right if it chooses the same *token*; where it does not, the search has said which token is right.
#
# The schedule is the paper's base here, four guesses to a search; the default one measures, and decides.

# %%
PROMPT, LENGTH = stories[0].prompt, 160
by_four = Settings(schedule=FixedStride(stride=4))
lm = KNNLanguageModel(model, tokenizer, store, k=8, weight=0.8, settings=by_four)
plain = lm.generate(PROMPT, max_tokens=LENGTH, plain=True)
answer = lm.generate(PROMPT, max_tokens=LENGTH)

assert answer.state.tokens == plain.state.tokens
assert answer.retrieved == plain.retrieved
print(answer.text)

# %% [markdown]
# Not only the tokens are the same, but also the record of what was found for each of them: entries, their tokens, and distances.

# %%
near = answer.retrieved[20].hits
print("token", repr(tokenizer.decode(answer.state.tokens[20])), "had the neighbours")
for entry, token, distance in zip(near.ids, near.values, near.distances, strict=True):
    print(f"{entry:10}  {tokenizer.decode([token])!r:14}{distance:10.2f}")

# %% [markdown]
# What it took: round trips, and the hidden states that they searched for.

# %%
for name, stats in (("plain", plain.stats), ("speculative", answer.stats)):
    print(f"{name:12}{stats.searches:5} searches of {stats.queries} hidden states")
print(f"{answer.stats.guess_rate:.0%} of {answer.stats.guesses} guesses were right")

# %% [markdown]
# ## What it is good for
#
# A weight of next to nothing is the model alone; at 0.8 the neighbours have most of the say.
# `count_facts` reads the statements out of a text, as far as they are whole sentences in the wording of the articles.

# %%
alone = KNNLanguageModel(model, tokenizer, store, k=8, weight=1e-9)
for name, one in (("model alone", alone), ("with neighbours", lm)):
    text = one.generate(PROMPT, max_tokens=LENGTH).text
    print(f"{name}: {count_facts(text, stories[0], world).stated} statements can be read")
    print(text, "\n")

# %% [markdown]
# So it has learned to write such articles, without any training.
# What they say is made up: to know things, it takes passages in front of the prompt, or a larger model, whose hidden states hold more than the form of a sentence.
#
# Perplexity says how well texts are foretold that are not in the datastore: less is better.
# The search does not depend on the weight, so one reading serves for all.

# %%
foretold = lm.perplexity(held_out)
print(f"{foretold.tokens} tokens; model alone: {foretold.model_perplexity:.2f}")
for weight in (0.1, 0.25, 0.5, 0.65, 0.8):
    print(f"weight {weight:4}: {foretold.perplexity(weight):.2f}")

# %% [markdown]
# ## Measured
#
# Plain against three schedules: the paper's fixed stride and OS3, and continuous verification, the default here.
# Once with the keys in memory, and once with the keys on the disk, as for a datastore that is larger than memory: then every search goes through the file, once for all its hidden states.
# They take turns, a round for each held-out article, and every text is compared with the plain one of its round.

# %%
schedules = {
    "plain": Settings(speculate=False),
    "fixed stride 4": by_four,
    "OS3": Settings(schedule=OptimalStride()),
    "continuous": Settings(),
}
searches = {
    "in memory": open_search("exact", store, k=8),
    "on the disk": open_search("exact", store, k=8, memory_bytes=0),
}
runs = {
    (where, name): KNNLanguageModel(
        model, tokenizer, store, search=search, weight=0.8, settings=settings
    )
    for where, search in searches.items()
    for name, settings in schedules.items()
}
measured = {key: [] for key in runs}

for one in runs.values():
    one.generate(PROMPT, max_tokens=4)  # warm: threads, and the first pass over the keys
for story in stories[1:]:
    for (where, name), one in runs.items():
        done = one.generate(story.prompt, max_tokens=48)
        if name == "plain":
            right = done
        assert (done.state.tokens, done.retrieved) == (right.state.tokens, right.retrieved)
        measured[where, name].append(done.stats)

print(f"{'':27}{'seconds':>9}{'searches':>10}{'guesses right':>15}")
for (where, name), all_stats in measured.items():
    seconds = statistics.median(one.wall_s for one in all_stats)
    trips = statistics.median(one.searches for one in all_stats)
    rates = [one.guess_rate for one in all_stats if one.guess_rate is not None]
    rate = f"{statistics.median(rates):.0%}" if rates else "-"
    print(f"{where:12}{name:<15}{seconds:9.2f}{trips:10}{rate:>15}")

# %% [markdown]
# Read it so:
#
# - A search goes through all keys, so it takes the longer, the more there are; a pass of the model does not.
#   This datastore is a small one, and there is not much to hide; those of `docs/knn_lm.md` are larger.
# - What is saved is round trips: one search for many hidden states reads the keys once.
#   Where that is most of a search's work, as on the disk, most of the time goes with them.
# - The times are your machine's, of this minute: other work on it counts. The tokens are not.
#
# ## What happened when

# %%
shown = {
    name: runs["on the disk", name].generate(PROMPT, max_tokens=24).stats
    for name in ("continuous", "plain")
}
display(SVG(timeline.figure(shown, title=PROMPT.strip())))

# %% [markdown]
# ## A replica
#
# An approximate index over the same keys guesses for the exact search, from the first token on.
# It pays where searches are long. This datastore's are not, so here each round trip waits, as for a datastore of millions of entries or one on another machine.
# The cache of neighbours, and HNSW, against the plain loop:


# %%
class FarAway:
    """The exact search, behind a round trip."""

    def __init__(self, search):
        self._search = search

    def __getattr__(self, name):
        return getattr(self._search, name)

    def search(self, queries):
        time.sleep(ROUND_TRIP_S)
        return self._search.search(queries)

    def search_wide(self, queries, width):
        time.sleep(ROUND_TRIP_S)
        return self._search.search_wide(queries, width)


far = FarAway(searches["in memory"])
ways = {
    "plain": {"settings": Settings(speculate=False)},
    "cache": {},
    "replica": {"replica": "hnsw"},
}
models = {
    name: KNNLanguageModel(model, tokenizer, store, search=far, weight=0.8, **given)
    for name, given in ways.items()
}
latencies_s = (0.0, 0.01, 0.03, 0.1)
speedups = {"cache": [], "replica": []}
rates = {"cache": [], "replica": []}
for ROUND_TRIP_S in latencies_s:
    done = {name: one.generate(PROMPT, max_tokens=32) for name, one in models.items()}
    for name in speedups:
        assert done[name].state.tokens == done["plain"].state.tokens
        speedups[name].append(done["plain"].stats.wall_s / done[name].stats.wall_s)
        rates[name].append(done[name].stats.guess_rate or 0.0)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
milliseconds = [1000 * one for one in latencies_s]
for name in speedups:
    left.plot(milliseconds, speedups[name], marker="o", label=name)
    right.plot(milliseconds, rates[name], marker="o", label=name)
left.axhline(1, color="grey", linestyle=":")
left.set(xlabel="a round trip, ms", ylabel="times as fast as plain", ylim=(0, None))
right.set(xlabel="a round trip, ms", ylabel="share of right guesses", ylim=(0, 1.05))
left.legend()
plt.show()

# %% [markdown]
# ## How many of the entries behind a neighbour?
#
# The paper takes the next ten.

# %%
for following in (0, 1, 5, 10, 20):
    with KNNLanguageModel(
        model, tokenizer, store, k=8, weight=0.8, settings=by_four, following=following
    ) as one:
        stats = one.generate(PROMPT, max_tokens=48).stats
    print(f"{following:3} behind each: {stats.guess_rate:.0%} of the guesses right")

# %% [markdown]
# The cache can be asked by itself, too: it learns what a search found, and guesses for the next hidden state.
# The entries need not be the same, as long as their tokens are.

# %%
cache = NeighbourCache(store, k=8)
first, second = answer.retrieved[19:21]
cache.learn(first.query, first.hits)
guess = cache.guess(second.query)

print(cache.size, "entries")
print("guessed:", [tokenizer.decode([token]) for token in guess.values])
print("found:  ", [tokenizer.decode([token]) for token in second.hits.values])

# %% [markdown]
# ## Drawn, streamed, stopped
#
# Draws are keyed by seed and position, so sampled texts are equal to the plain loop's as well.
# What is streamed is never taken back.

# %%
hot = Sampling(temperature=0.9, top_p=0.95)
for seed in (1, 2):
    drawn = lm.generate(PROMPT, max_tokens=24, sampling=hot, seed=seed)
    plainly = lm.generate(PROMPT, max_tokens=24, sampling=hot, seed=seed, plain=True)
    assert drawn.state.tokens == plainly.state.tokens
    print(seed, drawn.text)

# %%
stream = lm.stream(PROMPT, max_tokens=LENGTH, stop=" Now")
for piece in stream:
    print(piece, end="", flush=True)

assert plain.text.startswith(stream.answer.text)

# %% [markdown]
# ## As a model of LangChain
#
# `KNNLLM` is an `LLM` of the host; `llama_index_ralmspec` has one of the same name.

# %%
llm = KNNLLM(lm=lm, max_tokens=LENGTH)
chain = PromptTemplate.from_template("Tell the story of {name}.\n") | llm

assert chain.invoke({"name": stories[0].subject}) == plain.text
print("".join(chain.stream({"name": stories[1].subject})))

# %% [markdown]
# Where to go next: `docs/knn_lm.md` has the settings with their reasons, approximate search, files and errors; `ralmspec knn` does all of this on the command line.

# %%
for one in (lm, alone, *runs.values(), *models.values()):
    one.close()
del store, cache, searches, runs, models, far, one, lm, alone, llm, chain  # they hold the files
folder.cleanup()
