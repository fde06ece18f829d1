"""The bugs that are planted in the LangChain integration."""

from bug import Bug

ROOT = "integrations/langchain_ralmspec"
HOSTS = "ralmspec_plugins/hosts"
TOLD = "tests/langchain/test_rag_events.py"
FAULTS = "tests/langchain/test_rag_faults.py"
EQUAL = "tests/langchain/test_rag_equality.py"
RESULTS = "tests/langchain/test_rag_results.py"
MANY = "tests/langchain/test_rag_concurrency.py"
RETRIEVER = "tests/langchain/test_host_retriever.py tests/langchain/test_retriever.py"
STORES = "tests/langchain/stores/test_faiss.py tests/hosts/stores"
CHAINS = "tests/langchain/test_chains.py"
MODELS = "tests/langchain/test_lm.py tests/hosts/test_text_draft.py"

BUGS_LANGCHAIN = (
    Bug(
        "speculative calls are told at once",
        f"{ROOT}/call_configs.py",
        'config["callbacks"] = _quietly(quiet, recorder)',
        'config["callbacks"] = self.config.get("callbacks")',
        TOLD,
    ),
    Bug(
        "a model's own handlers hear speculative calls",
        f"{ROOT}/silence.py",
        "if isinstance(runnable, BaseLanguageModel) and runnable.callbacks:",
        "if isinstance(runnable, str):",
        TOLD,
    ),
    Bug(
        "handlers of the context hear speculative calls",
        f"{ROOT}/call_configs.py",
        "(hook, hook.set(None))",
        "(hook, hook.set(hook.get()))",
        f"{TOLD} {MODELS}",
    ),
    Bug(
        "a committed call is told twice",
        f"{ROOT}/recording.py",
        "            self.events.clear()\n            self._emit = emit\n",
        "",
        TOLD,
    ),
    Bug(
        "a run stays open after a cancel",
        f"{ROOT}/live.py",
        "starts = reversed(self._open.items())",
        "starts = ()",
        f"{FAULTS} {TOLD}",
    ),
    Bug(
        "a call that is made once more is told from its beginning",
        f"{ROOT}/live.py",
        "if self._held is None or len",
        "if self._open or len",
        FAULTS,
    ),
    Bug(
        "an error is told before it is known what it means",
        f"{ROOT}/live.py",
        "            self._held = here\n            return due\n",
        "            return [*due, here]\n",
        FAULTS,
    ),
    Bug(
        "documents are handed out as they are kept",
        f"{ROOT}/passages.py",
        "metadata = copied_where_possible(document.metadata)",
        "metadata = document.metadata",
        f"{RETRIEVER} tests/langchain/test_passages.py",
    ),
    Bug(
        "a filter is no part of what keeps calls apart",
        f"{ROOT}/looking.py",
        "frozen({**runnable.search_kwargs, **at.kwargs})",
        "None",
        f"{RETRIEVER} {MANY}",
    ),
    Bug(
        "users' values are no part of what keeps calls apart",
        f"{ROOT}/looking.py",
        'users = frozen(users_values(at.config.get("configurable") or {}))',
        "users = None",
        f"{RETRIEVER} {MANY}",
    ),
    Bug(
        "a near tie is believed of a batch",
        f"{HOSTS}/stores/certificate.py",
        "best[:-1] - best[1:] > 2 * error",
        "best[:-1] - best[1:] >= 0",
        STORES,
    ),
    Bug(
        "documents of earlier steps are given again",
        f"{ROOT}/reply.py",
        "one not in self._seen.get(one.id, ())",
        "one.id",
        EQUAL,
    ),
    Bug(
        "an engine made for one setting serves another",
        f"{HOSTS}/speculation.py",
        "name = key, host.signature",
        "name = host.signature",
        f"{RESULTS} {EQUAL} tests/langchain/test_rag_composition.py",
    ),
    Bug(
        "a question that is changed on its way is taken for the same",
        f"{ROOT}/chains.py",
        "(selected := _selected(part)) is None or selected != name",
        "part is None",
        CHAINS,
    ),
    Bug(
        "what stands behind a sentence is kept",
        f"{HOSTS}/text_draft.py",
        "return _appended(draft, written, sentence, spent=spent, ended=ended)",
        "return _appended(draft, written, written.text, spent=spent, ended=ended)",
        MODELS,
    ),
    Bug(
        "the end that a model comes to is not noticed",
        f"{HOSTS}/text_draft.py",
        "ended = bool(written.ended) or not written.text or spent >= draft.origin.max_tokens",
        "ended = not written.text or spent >= draft.origin.max_tokens",
        MODELS,
    ),
)
