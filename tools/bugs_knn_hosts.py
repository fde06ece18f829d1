"""Bugs in KNN-LM as a model of LangChain and of LlamaIndex."""

from bug import Bug

LANGCHAIN = "integrations/langchain_ralmspec/knn.py"
LLAMA_INDEX = "integrations/llama_index_ralmspec/knn.py"
SHARED = "ralmspec_plugins/hosts/knn_texts.py"
IN_LANGCHAIN = "tests/langchain/test_knn.py"
IN_LLAMA_INDEX = "tests/llama_index/test_knn.py"

BUGS_KNN_HOSTS = (
    Bug(
        "LangChain's handlers do not hear a stream's tokens",
        LANGCHAIN,
        "                    run_manager.on_llm_new_token(piece, chunk=chunk)\n",
        "                    pass\n",
        IN_LANGCHAIN,
    ),
    Bug(
        "LangChain's asynchronous handlers do not hear them",
        LANGCHAIN,
        "                    await run_manager.on_llm_new_token(piece, chunk=chunk)\n",
        "                    pass\n",
        IN_LANGCHAIN,
    ),
    Bug(
        "a call of LangChain cannot have no stop strings",
        LANGCHAIN,
        "self.stop if stop is None else stop",
        "stop or self.stop",
        IN_LANGCHAIN,
    ),
    Bug(
        "a batch of LangChain forgets how tokens are drawn",
        LANGCHAIN,
        'engine = self.lm.engine(options["sampling"], plain',
        "engine = self.lm.engine(plain",
        IN_LANGCHAIN,
    ),
    Bug(
        "LangChain's cache does not know the model's own stop strings",
        LANGCHAIN,
        '"own_stop": list(self.stop)',
        '"stop": list(self.stop)',
        IN_LANGCHAIN,
    ),
    Bug(
        "LangChain's cache takes another model for the first",
        LANGCHAIN,
        "if self._known is None or self._known[0] is not self.lm:",
        "if self._known is None:",
        IN_LANGCHAIN,
    ),
    Bug(
        "an awaited call of LangChain holds up the event loop",
        LANGCHAIN,
        "await self.lm.agenerate(prompts[0], **options)",
        "self.lm.generate(prompts[0], **options)",
        IN_LANGCHAIN,
    ),
    Bug(
        "weights stand in what LangChain's handlers are told",
        LANGCHAIN,
        "Field(repr=False, exclude=True)",
        "Field(exclude=True)",
        IN_LANGCHAIN,
    ),
    Bug(
        "a prompt of LlamaIndex is wrapped twice",
        LLAMA_INDEX,
        "return prompt if formatted else self.completion_to_prompt(prompt)",
        "return self.completion_to_prompt(prompt)",
        IN_LLAMA_INDEX,
    ),
    Bug(
        "an awaited chat of LlamaIndex holds up the event loop",
        LLAMA_INDEX,
        "response = await self.acomplete(self._told(messages), formatted=True, **kwargs)",
        "response = self.complete(self._told(messages), formatted=True, **kwargs)",
        IN_LLAMA_INDEX,
    ),
    Bug(
        "LlamaIndex counts no tokens",
        LLAMA_INDEX,
        '"usage": taken[REPORT]["usage"]',
        '"usage": {}',
        IN_LLAMA_INDEX,
    ),
    Bug(
        "LlamaIndex keeps reports in a chat's history",
        LLAMA_INDEX,
        "raw={**taken",
        "additional_kwargs=taken, raw={**taken",
        IN_LLAMA_INDEX,
    ),
    Bug(
        "unknown settings of a LlamaIndex model are passed over",
        LLAMA_INDEX,
        "        if unknown:\n",
        "        if unknown and not host:\n",
        IN_LLAMA_INDEX,
    ),
    Bug(
        "a text that was stopped is said to be cut",
        SHARED,
        '"length" if draft.ending == "length" else "stop"',
        '"length"',
        IN_LANGCHAIN,
    ),
    Bug(
        "anything is taken for a KNN-LM",
        SHARED,
        "    if not isinstance(lm, KNNLanguageModel):",
        "    if lm is None:",
        IN_LLAMA_INDEX,
    ),
)
