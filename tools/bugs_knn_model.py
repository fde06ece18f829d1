"""Bugs in KNN-LM's model, mixture, workload and perplexity."""

from bug import Bug

KNN = "ralmspec_plugins/knn"
WORKLOAD = "ralmspec_plugins/workloads/knn_lm.py"
EQUALITY = "tests/knn/test_equality.py"
STEPS = "tests/knn/test_workload.py"
MIXTURE = "tests/knn/test_distribution.py"
MODEL = "tests/knn/test_model.py"
WHOLE = "tests/knn/test_language_model.py"
HELD_OUT = "tests/knn/test_perplexity.py"

AGREE = "return guess is hits or self.chosen(state, guess) == self.chosen(state, hits)"

BUGS_KNN_MODEL = (
    Bug("every guess is right", WORKLOAD, AGREE, "return True", EQUALITY),
    Bug(
        "a guess is right when the nearest neighbour's token is",
        WORKLOAD,
        AGREE,
        "return guess[:1].values.tolist() == hits[:1].values.tolist()",
        EQUALITY,
    ),
    Bug("only equal neighbours are right", WORKLOAD, AGREE, "return guess == hits", STEPS),
    Bug(
        "a choice is remembered for a state, whatever its hits",
        f"{KNN}/draft.py",
        "known = self._chosen.get(id(hits))",
        "known = next(iter(self._chosen.values()), None)",
        EQUALITY,
    ),
    Bug(
        "a choice is made anew each time",
        f"{KNN}/draft.py",
        "known = self._chosen.get(id(hits))",
        "known = None",
        STEPS,
    ),
    Bug(
        "a draw counts the draws so far",
        WORKLOAD,
        "draft.origin.seed, len(draft.tokens))",
        "draft.origin.seed, id(state))",
        EQUALITY,
    ),
    Bug(
        "the record keeps the guess where its token was right",
        "ralmspec_plugins/chain.py",
        "self.retrieved.append(Retrieved(step.query, step.truth))",
        "self.retrieved.append(Retrieved(step.query, step.guess or step.truth))",
        EQUALITY,
    ),
    Bug(
        "prefetched neighbours vote",
        "ralmspec_plugins/setups.py",
        "Found(fixed(hits[:k]), fixed(hits))",
        "Found(fixed(hits), fixed(hits))",
        EQUALITY,
    ),
    Bug(
        "a token has only its nearest neighbour's vote",
        f"{KNN}/distribution.py",
        "np.add.reduceat(np.exp(scores - np.repeat(strongest, counts)), starts)",
        "np.ones(len(starts))",
        MIXTURE,
    ),
    Bug(
        "the model has the neighbours' share",
        f"{KNN}/distribution.py",
        "mixed += math.log1p(-weight) if weight < 1 else -math.inf",
        "mixed += math.log(weight)",
        MIXTURE,
    ),
    Bug(
        "temperature sharpens",
        f"{KNN}/distribution.py",
        "neighbours.distances[order] / -temperature",
        "neighbours.distances[order] * -temperature",
        MIXTURE,
    ),
    Bug(
        "a text that has ended goes on asking",
        f"{KNN}/model.py",
        "            return KNNDraft(draft)\n",
        "            return KNNDraft(draft, state.hidden, state.log_probs)\n",
        MODEL,
    ),
    Bug(
        "the hidden state is that of the first position",
        "ralmspec_plugins/lm/passes.py",
        "self._tap.taken()[0, -keep:, :]",
        "self._tap.taken()[0, :keep, :]",
        MODEL,
    ),
    Bug(
        "wrong tokens stay in the key-value cache",
        "ralmspec_plugins/lm/passes.py",
        "        run.cache.crop(keep - len(run.tokens))\n",
        "",
        MODEL,
    ),
    Bug(
        "a prompt begins without BOS",
        f"{KNN}/model.py",
        "prompt = self._begins + tokens if tokens else ()",
        "prompt = tokens",
        MODEL,
    ),
    Bug(
        "a plain run speculates",
        f"{KNN}/language_model.py",
        "speculate=False)",
        "speculate=True)",
        WHOLE,
    ),
    Bug(
        "a model of other weights is taken",
        f"{KNN}/fitting.py",
        'model=model_fingerprint(model) if same_model else ""',
        'model=""',
        WHOLE,
    ),
    Bug(
        "a search of another datastore is taken",
        f"{KNN}/fitting.py",
        "if search.datastore.signature != store.signature:",
        "if False:",
        WHOLE,
    ),
    Bug(
        "a window foretells a token twice",
        f"{KNN}/perplexity.py",
        "            first = end\n",
        "            first = end - 1\n",
        HELD_OUT,
    ),
    Bug(
        "a window sees the token that it foretells",
        f"{KNN}/perplexity.py",
        "model.read(tokens[start : end - 1], following)",
        "model.read(tokens[start:end], following)",
        HELD_OUT,
    ),
    Bug(
        "a replica by its name looks for all neighbours",
        f"{KNN}/language_model.py",
        "min(self.retriever.k, GUESSED)",
        "self.retriever.k",
        WHOLE,
    ),
    Bug(
        "a replica waits for a worker",
        f"{KNN}/language_model.py",
        "Replica(cheap, of, inline=True)",
        "Replica(cheap, of)",
        WHOLE,
    ),
    Bug(
        "a replica is built, and the cache guesses",
        f"{KNN}/language_model.py",
        "speculators=(self.replica if inline else aside,)",
        "speculators=None",
        WHOLE,
    ),
    Bug(
        "a tap that goes breaks another's pass",
        f"{KNN}/hidden.py",
        "        if kwargs is not None:\n",
        "        if kwargs.keys() is not None:\n",
        "tests/knn/test_hidden.py",
    ),
    Bug(
        "a tap that comes breaks another's pass",
        f"{KNN}/hidden.py",
        'self._of_thread.__dict__.get("states")',
        "self._of_thread.states",
        "tests/knn/test_hidden.py",
    ),
    Bug(
        "an event loop waits for guesses",
        f"{KNN}/language_model.py",
        "self._guessing(inline=kind is Engine)",
        "self._guessing(inline=True)",
        WHOLE,
    ),
    Bug(
        "a cache's settings are not looked at before it is needed",
        f"{KNN}/language_model.py",
        "        check_cache(following, followed, capacity)\n",
        "",
        WHOLE,
    ),
    Bug(
        "an exact search by its name scans on BLAS's threads",
        f"{KNN}/search.py",
        'settings.setdefault("threads", own_threads())',
        'settings.setdefault("threads", None)',
        WHOLE,
    ),
)
