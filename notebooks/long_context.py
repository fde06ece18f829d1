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
# # A long context, and a drafter that reads a part of it
#
# A model that answers from a long context looks back at all of it for every token.
# RAPID lets a drafter read only the chunks that are similar to the question; the target reads several drafts in one pass, and keeps what it would have written itself.
# This notebook shows what the drafter reads, that the text stays the same, how often drafts are right, and the other target that RAPID makes of model and drafter.
#
# The next cell installs what it needs, if it is not there; after that no network is used: text and model come with the package.
# The demo's model has 1,024 positions, so "long" is short here; `python -m benchmarks rapid` measures up to 16,000.

# %%
from importlib.util import find_spec

if not all(map(find_spec, ('ralmspec_plugins', 'transformers', 'matplotlib'))):
    get_ipython().run_line_magic("pip", 'install --quiet "ralmspec-plugins[hf,plots,notebooks]"')

# %%
import statistics
from dataclasses import replace

import torch
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from ralmspec_plugins.decoding import Decoding, KnowledgeTransfer, RagDrafter, TokenTree
from ralmspec_plugins.demo import MODEL, make_world
from ralmspec_plugins.lm import HuggingFaceLM, PassageTemplate
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage, Request

logging.disable_progress_bar()
torch.set_num_threads(1)  # the model is tiny

# %% [markdown]
# ## A context of several articles, and questions about them
#
# All articles stand in front of each question, as one long passage.

# %%
world = make_world(seed=7, passages=200)
stories = world.questions(6, seed=0)
log = Passage("articles", "\n\n".join(world.article(one) for one in stories[:3]))
requests = [Request(prompt=one.prompt, max_tokens=48) for one in stories[:3]]

# %% [markdown]
# ## Two models with the same weights: one decodes plainly, one with drafts
#
# Without a model of its own a `RagDrafter` shares the target's weights.
# Chunks are small here, as the context is.

# %%
network = AutoModelForCausalLM.from_pretrained(MODEL)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
style = {"template": PassageTemplate(prompt="{prompt}\n"), "passage_tokens": 900}


def drafter(tokens):
    return RagDrafter(chunk_tokens=32, least_tokens=tokens, threshold=-1.0, question_tokens=16)


plain = HuggingFaceLM(network, tokenizer, **style)
rapid = drafter(160)
fast = HuggingFaceLM(network, tokenizer, decoding=Decoding(drafter=rapid), **style)


def written(lm, request):
    progress = Progress()
    return lm.write(lm.begin(request), [log], request.max_tokens, progress), progress


texts = [written(plain, request)[0] for request in requests]
for request, text in zip(requests, texts, strict=True):
    draft, progress = written(fast, request)
    assert draft.tokens == text.tokens
    print(
        request.prompt.strip(), "|", progress.model_passes, "passes,", len(draft.tokens), "tokens"
    )

# %% [markdown]
# The texts are equal, token by token.
# There may be as many passes as tokens: with a model and a context as small as these a step of the drafter takes as long as a pass of the target, and then it does not begin.
#
# ## What it reads
#
# The most similar chunks, in the order of the context, then the question.


# %%
class Watching:
    """A drafter that drafts nothing, and keeps what it was shown."""

    def propose(self, context, budget):
        self.context = context
        return TokenTree()

    def update(self, accepted):
        pass


def seen(request):
    """Return a whole text as a drafter sees it."""
    watching = Watching()
    lm = HuggingFaceLM(network, tokenizer, decoding=Decoding(drafter=watching), **style)
    text, _ = written(lm, request)
    return replace(watching.context, request=request.prompt, text=text.tokens)


first = seen(requests[0])
for chunk in rapid.chunks_in_use(first):
    print(chunk.start, repr(tokenizer.decode(chunk.tokens)[:70]))

# %% [markdown]
# ## How often its drafts are right
#
# We go through each text and ask for a draft at every fourth token.
# More is not always better: chunks that say nothing of the question distract this model, and each of them makes a step cost more.


# %%
def accepted(context, reader):
    """Return the share of the first five drafts that the text confirms."""
    found = []
    for at in range(1, len(context.text) - 5, 4):
        tree = reader.propose(replace(context, text=context.text[:at]), 5)
        found.append(len(tree.followed(context.text[at:])) / len(tree))
    return statistics.mean(found)


contexts = [seen(request) for request in requests]
shares = {}
for tokens in (32, 96, 160, 320):
    lm_drafter = drafter(tokens)
    HuggingFaceLM(network, tokenizer, decoding=Decoding(drafter=lm_drafter), **style)
    shares[tokens] = statistics.mean(accepted(one, lm_drafter) for one in contexts)

figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
axes.plot(list(shares), list(shares.values()), marker="o")
axes.set(xlabel="tokens that are retrieved", ylabel="share of right drafts", ylim=(0, 1))
plt.show()
print(shares)

# %% [markdown]
# ## Knowledge transfer: another target
#
# For eta above 0 the distribution moves towards the drafter's: p^ = softmax(z/T + eta (q - p)).
# That is not the model's own text any more.
# It is defined token by token, and drafts change nothing in it.

# %%
for eta in (0, 5, 20):
    tellers = []
    for drafts in (False, True):
        teacher = drafter(160)
        transfer = KnowledgeTransfer(teacher=teacher, eta=eta)
        decoding = Decoding(drafter=teacher if drafts else (), transfer=transfer)
        tellers.append(HuggingFaceLM(network, tokenizer, decoding=decoding, **style))
    single, drafted = (written(lm, requests[0])[0] for lm in tellers)
    assert single.tokens == drafted.tokens
    same = sum(one == other for one, other in zip(single.tokens, texts[0].tokens, strict=False))
    print(f"eta {eta}: {same} of {len(single.tokens)} tokens as in the model's own text")

# %% [markdown]
# ## With your own
#
# ```python
# from ralmspec_plugins.retrieval.encoders import SentenceTransformerEncoder
#
# drafter = RagDrafter(encoder=SentenceTransformerEncoder("BAAI/bge-m3"))
# lm = HuggingFaceLM.from_pretrained(
#     "path/to/model", passage_tokens=120_000, decoding=Decoding(drafter=drafter)
# )
# ```
#
# The hosts' `SpeculativeLLM` takes the drafter, too: `docs/long_contexts.md` has examples, settings and measurements; `ralmspec ask --long-context` does it on the command line.
