"""The planted bugs: each is one replacement in the loop, schedules, caches, model or decoding."""

from dataclasses import dataclass

EQUALITY = "tests/test_equality.py"
DECODING = "tests/decoding/test_equality.py"
THREADS = "tests/engine/test_plain_threads.py tests/scheduling/test_schedules.py"


@dataclass(frozen=True)
class Bug:
    """One replacement that makes the code wrong."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str = EQUALITY


BUGS = (
    Bug(
        "a guess is never compared with the truth",
        "ralmspec_plugins/window.py",
        "if self._agree(step, step.used, truth):",
        "if truth is not None:",
    ),
    Bug(
        "passages are compared by their ids alone",
        "ralmspec_plugins/window.py",
        "same_to_read(guess, truth) if agree is None",
        "[h.passage.id for h in guess] == [h.passage.id for h in truth] if agree is None",
    ),
    Bug(
        "a segment written on a wrong guess is kept",
        "ralmspec_plugins/window.py",
        "        step.rewrite(truth)\n",
        "        step.used = truth\n",
    ),
    Bug(
        "the steps after a wrong guess are not dropped",
        "ralmspec_plugins/window.py",
        "        self.drop(position + 1)\n",
        "",
    ),
    Bug(
        "a verified step is committed before the ones in front of it",
        "ralmspec_plugins/window.py",
        "            step = self.steps.pop(0)\n",
        "            ready = [n for n, s in enumerate(self.steps) if s.verified and s.written]\n"
        "            step = self.steps.pop(max(ready))\n",
    ),
    Bug(
        "the record keeps the guess, with its scores",
        "ralmspec_plugins/window.py",
        "Retrieved(step.query, step.truth)",
        "Retrieved(step.query, step.guess or step.truth)",
    ),
    Bug(
        "a dropped question is taken back at another position",
        "ralmspec_plugins/steps.py",
        "found = self._find(self._queries, lambda: self._workload.query_key(before))",
        "found = next(iter(self._queries.values()), _ABSENT)",
    ),
    Bug(
        "a dropped segment is taken back under another cache history",
        "tests/worlds.py",
        "history = state.prefilled_at if state.front == hits else None",
        "history = None",
    ),
    Bug(
        "a dropped segment is taken back for other passages",
        "tests/worlds.py",
        "return state.rounds, state.text, hits, history",
        "return state.rounds, state.text, history",
    ),
    Bug(
        "a query's result is given to another query of its batch",
        "ralmspec_plugins/loop.py",
        "window, query = self.window, search.queries[done.index]",
        "window, query = self.window, search.queries[0]",
    ),
    Bug(
        "an error on a guess is raised before the guess is confirmed",
        "ralmspec_plugins/window.py",
        "return head.failure if head.verified or not head.asked else None",
        "return head.failure",
    ),
    Bug(
        "an error counts although other work was running",
        "ralmspec_plugins/loop.py",
        "        if failure.alone:",
        "        if failure:",
    ),
    Bug(
        "an error of one query fails its whole batch",
        "ralmspec_plugins/engine/session.py",
        "if len(queries) == 1 or isinstance(error, Overloaded):",
        "if queries:",
        "tests/test_equality.py tests/engine/test_engines.py",
    ),
    Bug(
        "a failed speculator fails the request",
        "ralmspec_plugins/speculators/cascade.py",
        "                self._complain(speculator)\n                continue",
        "                raise",
    ),
    Bug(
        "an unverified segment is streamed",
        "ralmspec_plugins/window.py",
        "if head.partial is not None and (head.verified or not head.asked):",
        "if head.partial is not None:",
    ),
    Bug(
        "text that a stop string may still cut is streamed",
        "ralmspec_plugins/window.py",
        "text = self.workload.settled(state)",
        "text = self.workload.text(state)",
    ),
    Bug(
        "extend sees scores that it says it does not read",
        "ralmspec_plugins/window.py",
        "return hits if self.workload.reads_scores else",
        "return hits if hits else",
    ),
    Bug(
        "a segment starts before the cancelled one has stopped",
        "ralmspec_plugins/window.py",
        "self.writer = None if isinstance(need, Guess) else (need, None)",
        "self.writer = None",
    ),
    Bug(
        "what is committed differs from what the answer records",
        "ralmspec_plugins/window.py",
        "self.out.append(Commit(step.entry, step.after))",
        "self.out.append(Commit(self.retrieved[0] if self.retrieved else None, step.after))",
    ),
    Bug(
        "a step is confirmed twice",
        "ralmspec_plugins/window.py",
        "step.confirmed = True",
        "step.confirmed = False",
    ),
    Bug(
        "a failed request does not say whose search it was",
        "ralmspec_plugins/window.py",
        "search.error is not error",
        "search.error is error",
    ),
    Bug(
        "what a left segment comes to is taken for news",
        "ralmspec_plugins/engine/threads.py",
        "left.done is completion",
        "left.done is not None",
        "tests/engine/test_events.py",
    ),
    Bug(
        "a left segment is not waited for before its like is run alone",
        "ralmspec_plugins/engine/threads.py",
        "if isinstance(notice, Release):",
        "if isinstance(notice, int):",
        "tests/engine/test_events.py",
    ),
    Bug(
        "a text that comes otherwise the second time is given out",
        "ralmspec_plugins/window.py",
        "if step.broke_off is None:",
        "if step.written or step.broke_off is None:",
        "tests/engine/test_events.py",
    ),
    Bug(
        "a segment of a server is waited for",
        "ralmspec_plugins/engine/threads.py",
        "if self._side_by_side and writes",
        "if not need and writes",
        "tests/engine/test_events.py",
    ),
    Bug(
        "the memo answers for another store",
        "ralmspec_plugins/speculators/query_cache.py",
        "(signature, query.key)",
        "query.key",
        "tests/speculators",
    ),
    Bug(
        "a shared pool is one for all tenants",
        "ralmspec_plugins/speculators/passage_cache.py",
        "self._parts.get(retriever.signature)",
        "next(iter(self._parts.values()), None)",
        "tests/test_tenants.py",
    ),
    Bug(
        "searches of two signatures are merged",
        "ralmspec_plugins/batching/verifier.py",
        "group = self.signature, width\n",
        "group = 0, width\n",
        "tests/batching tests/engine/test_batch.py",
    ),
    Bug(
        "an error of a shared search is everybody's",
        "ralmspec_plugins/batching/queue.py",
        "if not self.is_one_call:\n",
        "if False:\n",
        "tests/batching tests/engine/test_batch.py",
    ),
    Bug(
        "the hidden state is that of the first position",
        "ralmspec_plugins/lm/kv_cache.py",
        "self._tap.taken()[0, -keep:, :]",
        "self._tap.taken()[0, :keep, :]",
        "tests/knn/test_model.py",
    ),
    Bug(
        "wrong tokens stay in the key-value cache",
        "ralmspec_plugins/lm/kv_cache.py",
        "        run.cache.crop(keep - len(run.tokens))\n",
        "",
        "tests/knn/test_model.py",
    ),
    Bug(
        "what guessing takes is not counted where a worker guesses, too",
        "ralmspec_plugins/window.py",
        "            self.policy.guessed(cascade.clock() - began_s)\n            if",
        "            if not cascade.slow():\n"
        "                self.policy.guessed(cascade.clock() - began_s)\n            if",
        "tests/scheduling/test_schedules.py",
    ),
    Bug(
        "a search that waits is taken for one that computes here",
        "ralmspec_plugins/scheduling/cost_model.py",
        "search.busy_s >= 0.5 * search.seconds > 0.0",
        "search.busy_s <= 0.5 * search.seconds",
        THREADS,
    ),
    Bug(
        "what the model computed is taken for the search's",
        "ralmspec_plugins/scheduling/cost_model.py",
        "if search.beside_s <= 0.05 * search.seconds:",
        "if search.beside_s >= 0.0:",
        THREADS,
    ),
    Bug(
        "what a guess takes is never counted",
        "ralmspec_plugins/scheduling/cost_model.py",
        "return self._guess_s <= max(self.QUICK_GUESS_S, self.guess_rate * most_s)",
        "return True",
        "tests/scheduling/test_schedules.py",
    ),
    Bug(
        "what a guess took is never forgotten",
        "ralmspec_plugins/scheduling/cost_model.py",
        "        self._guess_s *= self.FADING\n",
        "",
        "tests/scheduling/test_schedules.py",
    ),
    Bug(
        "guesses inside the loop are not timed",
        "ralmspec_plugins/window.py",
        "            self.policy.guessed(cascade.clock() - began_s)\n",
        "",
        "tests/scheduling/test_schedules.py",
    ),
    Bug(
        "a stride is chosen only where a guess is at hand",
        "ralmspec_plugins/scheduling/os3.py",
        "        self._renew(view)  # a guess",
        "        # a guess",
        "tests/test_loop.py",
    ),
    Bug(
        "a step that begins with a search is not beside it",
        "ralmspec_plugins/scheduling/continuous.py",
        "if not beside and (view.searching or self._is_due(view)):",
        "if not beside and view.searching:",
        "tests/scheduling/test_schedules.py",
    ),
    Bug(
        "a step without retrieval is recorded",
        "ralmspec_plugins/window.py",
        "        if isinstance(step.query, NoRetrieval):\n            return\n",
        "        if isinstance(step.query, NoRetrieval):\n            step.query = Query('')\n",
    ),
    Bug(
        "an encoder's error on a dropped branch is raised",
        "ralmspec_plugins/window.py",
        "before_writing = head.encode_failure or head.search_failure",
        "failed = [s.encode_failure for s in self.steps if s.encode_failure]\n"
        "            before_writing = Failure(failed[0].error, True) if failed "
        "else head.search_failure",
    ),
    Bug(
        "an encoder's error counts although other work was running",
        "ralmspec_plugins/window.py",
        "step.encode_failure = Failure(done.error, alone and step is self.steps[0])",
        "step.encode_failure = Failure(done.error, alone=True)",
    ),
    Bug(
        "a dropped query is not cancelled",
        "ralmspec_plugins/window.py",
        "        if isinstance(need, FormQuery | Extend):\n            need.progress.cancel()\n",
        "        if isinstance(need, Extend):\n            need.progress.cancel()\n",
    ),
    Bug(
        "what was carried is taken from another dropped query",
        "ralmspec_plugins/window.py",
        "            step.take(known)\n",
        "            other = next(iter(self.rollback._queries.values()))\n"
        "            step.take(known._replace(carried=other.carried))\n",
    ),
    Bug(
        "a query is searched before it is encoded",
        "ralmspec_plugins/window.py",
        "            and step.encoded\n            and step.truth is None\n",
        "            and step.truth is None\n",
    ),
    Bug(
        "a text is known by the key of another query",
        "ralmspec_plugins/speculators/query_cache.py",
        "if by_text and not was_text:",
        "if False:",
        "tests/speculators",
    ),
    Bug(
        "the memo forgets by insertion, not by use",
        "ralmspec_plugins/speculators/query_cache.py",
        "            self._entries.move_to_end(key)\n            return hits\n",
        "            return hits\n",
        "tests/speculators",
    ),
    Bug(
        "what was searched before an invalidation is remembered",
        "ralmspec_plugins/speculators/cascade.py",
        "found.hits, self._memo_generation)",
        "found.hits)",
        "tests/speculators",
    ),
    Bug(
        "an invalidation forgets the pool's parts that it keeps alone",
        "ralmspec_plugins/speculators/passage_cache.py",
        "parts = list(self._held)",
        "parts = list(self._parts.values())",
        "tests/speculators",
    ),
    Bug(
        "what was found after the index changed is shared",
        "ralmspec_plugins/speculators/cascade.py",
        "return self._signature_now() == self._signature",
        "return True",
        "tests/speculators",
    ),
    Bug(
        "a retriever's list is kept as it is",
        "ralmspec_plugins/types.py",
        'return hits if getattr(hits, "immutable", False) else tuple(hits)',
        "return hits",
        "tests/test_own_parts.py",
    ),
    Bug(
        "the text of a workload that settles nothing is never streamed",
        "ralmspec_plugins/engine/session.py",
        "if answer is None or len(answer.text) <= self._shown:",
        "if answer is None or not self._shown or len(answer.text) <= self._shown:",
        "tests/test_own_parts.py",
    ),
    Bug(
        "a state that comes after the end is not released",
        "ralmspec_plugins/engine/session.py",
        "        if self._closed:\n            self.setup.workload.release(state)\n",
        "",
        "tests/engine/test_forming.py",
    ),
    Bug(
        "a part's StopIteration ends a stream as if it were whole",
        "ralmspec_plugins/engine/streams.py",
        "if isinstance(error, StopIteration | StopAsyncIteration):",
        "if error is None:",
        "tests/engine/test_stop_iteration.py",
    ),
    Bug(
        "a draft sees its elder sibling instead of its parent",
        "ralmspec_plugins/lm/kv_cache.py",
        "seen[row] |= seen[parent]",
        "seen[row] |= seen[row - 1]",
        DECODING,
    ),
    Bug(
        "a draft stands at the position of its row",
        "ralmspec_plugins/lm/kv_cache.py",
        "positions = past + seen.sum(dim=1) - 1",
        "positions = past + torch.arange(len(parents))",
        DECODING,
    ),
    Bug(
        "the cache keeps a sibling of the draft that was accepted",
        "ralmspec_plugins/lm/kv_cache.py",
        "[first + row for row in path]",
        "[first + row for row in range(len(path))]",
        DECODING,
    ),
    Bug(
        "rejected drafts stay in the cache",
        "ralmspec_plugins/lm/kv_cache.py",
        "        cache.crop(len(path) - rows)\n",
        "        pass\n",
        DECODING,
    ),
    Bug(
        "a draft is read behind the wrong logits",
        "ralmspec_plugins/lm/kv_cache.py",
        "run.last = Last(rows.logits[path[-1] : path[-1] + 1], None)",
        "run.last = Last(rows.logits[-1:], None)",
        DECODING,
    ),
    Bug(
        "a token behind drafts counts as read by the schedule",
        "ralmspec_plugins/lm/kv_cache.py",
        "        if run.is_scheduled:\n            run.scheduled += 1\n",
        "        run.scheduled += 1\n",
        DECODING,
    ),
    Bug(
        "a cropped cache forgets how far the schedule went",
        "ralmspec_plugins/lm/kv_cache.py",
        "        run.scheduled = min(run.scheduled, keep)\n",
        "",
        DECODING,
    ),
    Bug(
        "what is kept for going back to is written on",
        "ralmspec_plugins/lm/kv_cache.py",
        "            run.cache = _copied(rows.before)\n",
        "            run.cache = rows.before\n",
        "tests/decoding/test_models.py -k open_choices",
    ),
    Bug(
        "an open choice is not taken again",
        "ralmspec_plugins/lm/huggingface.py",
        "if not segment.is_certain(draft.tokens, logits):",
        "if False:",
        DECODING,
    ),
    Bug(
        "a choice is certified with the random number of a rejected draft",
        "ralmspec_plugins/decoding/decoder.py",
        "            position=len(tokens),\n",
        "            position=len(tokens) + len(self._drafted),\n",
        DECODING,
    ),
    Bug(
        "a margin is held against half of what two logits may differ",
        "ralmspec_plugins/decoding/certification.py",
        "slack = 2.0 * bound",
        "slack = 1.0 * bound",
        "tests/decoding/test_certification.py",
    ),
    Bug(
        "a token at the edge of top-k is taken to be surely in it",
        "ralmspec_plugins/decoding/certification.py",
        "return (scores > next_best + 2.0 * bound) & possibly, possibly",
        "return possibly, possibly",
        "tests/decoding/test_certification.py",
    ),
    Bug(
        "a draft is followed that was not chosen",
        "ralmspec_plugins/decoding/verification.py",
        "child = self.tree.child(self._path[-1] - 1, token)",
        "child = self._path[-1] if self._path[-1] < len(self.tree) else None",
        DECODING,
    ),
    Bug(
        "the suffix automaton keeps a text that was rolled back",
        "ralmspec_plugins/decoding/drafters/suffix.py",
        "automaton.truncate(automaton.fixed + common_length(copied.text, text))",
        "automaton.truncate(automaton.fixed + min(len(copied.text), len(text)))",
        "tests/decoding/test_drafters.py",
    ),
    Bug(
        "a rolled back place is still counted",
        "ralmspec_plugins/decoding/suffix_automaton.py",
        "            self._count[state] -= 1\n",
        "",
        "tests/decoding/test_suffix_automaton.py",
    ),
    Bug(
        "a text goes on for the rest of an accepted block",
        "ralmspec_plugins/lm/huggingface.py",
        "while not draft.finished and len(draft.tokens) < goal:",
        "while (\n                not draft.finished or getattr(segment, '_pass', None)\n"
        "            ) and len(draft.tokens) < goal:",
        "tests/decoding/test_ends.py",
    ),
    Bug(
        "a stop string is cut one letter late",
        "ralmspec_plugins/lm/state.py",
        'transcript, ending = transcript.cut(stop), "stop"',
        'transcript, ending = transcript.cut(stop + 1), "stop"',
        "tests/decoding/test_ends.py",
    ),
)
