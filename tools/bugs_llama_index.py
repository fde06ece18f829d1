"""The bugs that are planted in the LlamaIndex integration."""

from bug import Bug

ROOT = "integrations/llama_index_ralmspec"
TESTS = "tests/llama_index"
TOLD = f"{TESTS}/test_query_events.py"
FAULTS = f"{TESTS}/test_query_faults.py"
ENGINE = f"{TESTS}/test_query_engine.py"
EQUAL = f"{TESTS}/test_rag_equality.py"
MANY = f"{TESTS}/test_query_concurrency.py"
LEFT = f"{TESTS}/test_query_cancellation.py"
WRITERS = f"{TESTS}/test_writers.py"
RETRIEVER = f"{TESTS}/test_host_retriever.py {TESTS}/test_retriever.py"

BUGS_LLAMA_INDEX = (
    Bug(
        "calls on guesses are told while they run",
        f"{ROOT}/quiet_call.py",
        "            with recorded(self.recording):\n                yield\n",
        "            yield\n",
        TOLD,
    ),
    Bug(
        "a committed response keeps the scores of its guess",
        f"{ROOT}/telling.py",
        "                score(recording, self._retrieved.hits)\n",
        "                pass\n",
        f"{ENGINE} {EQUAL}",
    ),
    Bug(
        "a committed call of LlamaIndex' is told twice",
        f"{ROOT}/telling.py",
        "if self._replay is None or self._replay.recording is not recording:",
        "if recording:",
        TOLD,
    ),
    Bug(
        "what is told keeps the span that it was made under",
        f"{ROOT}/replay.py",
        "        self._ids[self.recording.base] = active_span_id.get()\n",
        "",
        TOLD,
    ),
    Bug(
        "what a stream tells that was given up is told",
        f"{ROOT}/quiet_call.py",
        "            self.recording.drop()\n            raise\n",
        "            raise\n",
        f"{FAULTS} {LEFT}",
    ),
    Bug(
        "as many nodes are taken for the same nodes",
        f"{ROOT}/postprocessing.py",
        "if passages_of(guess) != passages_of(truth):",
        "if len(guess) != len(truth):",
        ENGINE,
    ),
    Bug(
        "what a cut-off leaves of a guess is kept",
        f"{ROOT}/postprocessing.py",
        "        return left is not None and left == self._left_of(truth)\n",
        "        return left is not None\n",
        WRITERS,
    ),
    Bug(
        "postprocessors that keep something run on guesses",
        f"{ROOT}/assembly.py",
        "        return not self._unknown()\n",
        "        return True\n",
        WRITERS,
    ),
    Bug(
        "calls share the query's bundle",
        f"{ROOT}/call_context.py",
        "        return copied(self.bundle if self.own is None else self.own)\n",
        "        return self.bundle if self.own is None else self.own\n",
        WRITERS,
    ),
    Bug(
        "what a search puts on the query is lost",
        f"{ROOT}/call_context.py",
        "        vars(self.own).update(found)\n",
        "        pass\n",
        WRITERS,
    ),
    Bug(
        "whether a response streams is read when it is written",
        f"{ROOT}/synthesis.py",
        "        if context is None or context.streaming == streaming:\n",
        "        if streaming == streaming:\n",
        f"{TESTS}/test_query_composition.py {TESTS}/test_synthesis.py",
    ),
    Bug(
        "a stream's text is there before its reader",
        f"{ROOT}/responses.py",
        "            message = replace(message, response_txt=None)",
        "            pass",
        f"{TESTS}/test_rag_stores.py -k reader",
    ),
    Bug(
        "the report stands among the nodes' metadata",
        f"{ROOT}/responses.py",
        "            self._metadata[REPORT] = report_of(answer)\n",
        "            self._metadata[answer.retrieved[0].query.text] = report_of(answer)\n",
        ENGINE,
    ),
    Bug(
        "nodes of a later step stand in front",
        f"{ROOT}/responses.py",
        "                self._nodes.append(node)\n",
        "                self._nodes.insert(0, node)\n",
        EQUAL,
    ),
    Bug(
        "a filter is no part of what keeps tenants apart",
        f"{ROOT}/looking.py",
        '("_filters", "_kwargs", *_NUMBERS, _MODE)]',
        '("_kwargs", *_NUMBERS, _MODE)]',
        f"{MANY} {RETRIEVER}",
    ),
    Bug(
        "a wider search is handed on as it is",
        "ralmspec_plugins/hosts/answering.py",
        "hits if width is None else hits[: call.look.k]",
        "hits",
        f"{TESTS}/test_retriever.py",
    ),
    Bug(
        "nodes are handed out as they are kept",
        f"{ROOT}/passages.py",
        "    return copied(source)\n",
        "    return source\n",
        f"{TESTS}/test_passages.py {RETRIEVER}",
    ),
    Bug(
        "nodes are kept as the host hands them out",
        f"{ROOT}/passages.py",
        "    source = copied(node)\n",
        "    source = node\n",
        f"{TESTS}/test_passages.py {RETRIEVER}",
    ),
)
