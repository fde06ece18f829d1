"""Plant bugs one at a time, and see each of them caught by the tests.

Works on a copy of the tree. Each bug is one replacement in one file; the named
tests must fail with it, and pass without any. The list in docs/planted_bugs.md is
written from what is found here.

    python tools/plant_bugs.py [--only WORD]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bug import EQUALITY, Bug
from bugs_knn_datastore import BUGS_KNN_DATASTORE
from bugs_knn_hosts import BUGS_KNN_HOSTS
from bugs_knn_model import BUGS_KNN_MODEL
from bugs_knn_search import BUGS_KNN_SEARCH
from bugs_langchain import BUGS_LANGCHAIN
from bugs_llama_index import BUGS_LLAMA_INDEX
from bugs_threads import BUGS_THREADS

ROOT = Path(__file__).resolve().parents[1]
MOST_S = 90.0  # the tests without a bug take a sixth of it
MODEL = "tests/lm"
MERGING = "tests/merging tests/test_batch.py"
BUILDING = "tests/retrieval/test_building.py tests/retrieval/test_seen_ids.py"
STORED = "tests/retrieval/test_storage.py tests/retrieval/test_passage_file.py"
TORCH = "tests/retrieval/test_torch_flat.py"
FAISS = "tests/retrieval/test_faiss.py"
BACKENDS = "tests/retrieval/test_backends.py"
BM25 = "tests/retrieval/test_lucene_bm25.py"
LUCENE = "-m java tests/retrieval/test_lucene.py"
EVENTS = "tests/test_events.py"
JVM = "-m java tests/retrieval/test_lucene_jvm.py"


CORE = "ralmspec_plugins"
BUGS = (
    Bug(
        "a guess is never compared with the truth",
        f"{CORE}/chain.py",
        "if self._agree(step, step.used, truth):",
        "if truth is not None:",
    ),
    Bug(
        "passages are compared by their ids alone",
        f"{CORE}/chain.py",
        "guess == truth if agree is None",
        "[h.passage.id for h in guess] == [h.passage.id for h in truth] if agree is None",
    ),
    Bug(
        "a segment written on a wrong guess is kept",
        f"{CORE}/chain.py",
        "        step.rewrite(truth)\n",
        "        step.used = truth\n",
    ),
    Bug(
        "the steps after a wrong guess are not dropped",
        f"{CORE}/chain.py",
        "        self.drop(position + 1)\n",
        "",
    ),
    Bug(
        "a verified step is committed before the ones in front of it",
        f"{CORE}/chain.py",
        "            step = self.steps.pop(0)\n",
        "            step = self.steps.pop(max(n for n, s in enumerate(self.steps)"
        " if s.verified and s.written))\n",
    ),
    Bug(
        "the record keeps the guess, with its scores",
        f"{CORE}/chain.py",
        "Retrieved(step.query, step.truth)",
        "Retrieved(step.query, step.guess or step.truth)",
    ),
    Bug(
        "a dropped question is taken back at another position",
        f"{CORE}/steps.py",
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
        f"{CORE}/loop.py",
        "query = search.queries[done.index]",
        "query = search.queries[0]",
    ),
    Bug(
        "an error on a guess is raised before the guess is confirmed",
        f"{CORE}/chain.py",
        "return head.failure if head.verified or not head.asked else None",
        "return head.failure",
    ),
    Bug(
        "an error counts although other work was running",
        f"{CORE}/loop.py",
        "        if failure.alone:",
        "        if failure:",
    ),
    Bug(
        "an error of one query fails its whole batch",
        f"{CORE}/job.py",
        "if len(queries) == 1 or isinstance(error, Overloaded):",
        "if queries:",
        f"{EQUALITY} tests/test_engines.py",
    ),
    Bug(
        "a failed speculator fails the request",
        f"{CORE}/speculation/guesses.py",
        "                self._complain(speculator)\n                continue",
        "                raise",
    ),
    Bug(
        "an unverified segment is streamed",
        f"{CORE}/chain.py",
        "        if self.steps and self.steps[0].verified:\n"
        "            self._confirmed(self.steps[0])",
        "        if self.steps:",
    ),
    Bug(
        "text that a stop string may still cut is streamed",
        f"{CORE}/chain.py",
        "text = self.workload.settled(state)",
        "text = self.workload.text(state)",
    ),
    Bug(
        "extend sees scores that it says it does not read",
        f"{CORE}/chain.py",
        "return hits if self.workload.reads_scores else",
        "return hits if hits else",
    ),
    Bug(
        "a segment starts before the cancelled one has stopped",
        f"{CORE}/chain.py",
        "self.writer = None if isinstance(need, Guess) else (need, None)",
        "self.writer = None",
    ),
    Bug(
        "what is committed differs from what the answer records",
        f"{CORE}/chain.py",
        "self.out.append(Commit(self.retrieved[-1], step.after))",
        "self.out.append(Commit(self.retrieved[0], step.after))",
    ),
    Bug(
        "a step is confirmed twice",
        f"{CORE}/chain.py",
        "step.confirmed = True",
        "step.confirmed = False",
    ),
    Bug(
        "a failed request does not say whose search it was",
        f"{CORE}/chain.py",
        "search.error is not error",
        "search.error is error",
    ),
    Bug(
        "what a left segment comes to is taken for news",
        f"{CORE}/desk.py",
        "left.done is not completion",
        "left.done is None",
        EVENTS,
    ),
    Bug(
        "a left segment is not waited for before its like is run alone",
        f"{CORE}/desk.py",
        "if isinstance(need, Release):",
        "if isinstance(need, Search):",
        EVENTS,
    ),
    Bug(
        "a text that comes otherwise the second time is given out",
        f"{CORE}/chain.py",
        "if step.broke_off is None:",
        "if step.written or step.broke_off is None:",
        EVENTS,
    ),
    Bug(
        "a segment of a server is waited for",
        f"{CORE}/desk.py",
        "if self._side_by_side and isinstance(need, Extend)",
        "if not need and isinstance(need, Extend)",
        EVENTS,
    ),
    Bug(
        "the memo answers for another store",
        f"{CORE}/speculation/memo.py",
        "(signature, query.key)",
        "query.key",
        "tests/speculation",
    ),
    Bug(
        "a shared pool is one for all tenants",
        f"{CORE}/speculation/shared.py",
        "self._parts.get(retriever.signature)",
        "next(iter(self._parts.values()), None)",
        "tests/test_tenants.py",
    ),
    Bug(
        "searches of two signatures are merged",
        f"{CORE}/verifier.py",
        "group = self.signature, width\n",
        "group = 0, width\n",
        MERGING,
    ),
    Bug(
        "searches of two widths are merged",
        f"{CORE}/verifier.py",
        "group = self.signature, width\n",
        "group = self.signature, 0\n",
        MERGING,
    ),
    Bug(
        "an error of a shared search is everybody's",
        f"{CORE}/merging/calls.py",
        "if not self.is_one_call:\n",
        "if False:\n",
        MERGING,
    ),
    Bug(
        "an error of a piece is the whole call's",
        f"{CORE}/merging/calls.py",
        "len(self.pieces) == 1 and len(piece.places) == len(piece.call.queries)",
        "len(self.pieces) == 1",
        MERGING,
    ),
    Bug(
        "each caller of a batch gets the first one's hits",
        f"{CORE}/merging/calls.py",
        "dict(zip(piece.places, found, strict=False))",
        "dict(zip(piece.places, outcome, strict=False))",
        MERGING,
    ),
    Bug(
        "a call that was given up is searched",
        f"{CORE}/merging/lanes.py",
        "            self._line.leave(gone)\n",
        "",
        MERGING,
    ),
    Bug(
        "a shared search is cancelled with its first caller",
        f"{CORE}/merging/calls.py",
        "return all(call.given_up",
        "return any(call.given_up",
        MERGING,
    ),
    Bug(
        "a search that is too late counts for the next try",
        f"{CORE}/merging/calls.py",
        "return self.tries != self.call.tries or self.call.ended",
        "return False",
        MERGING,
    ),
    Bug(
        "a failed search is repeated whole",
        f"{CORE}/merging/line.py",
        "(calls[:middle], calls[middle:])",
        "(calls,)",
        MERGING,
    ),
    Bug(
        "one group's flood fills everybody's line",
        f"{CORE}/merging/line.py",
        "if group.size and group.size + len(call.queries) > self.capacity:",
        "if self.size and self.size + len(call.queries) > self.capacity:",
        MERGING,
    ),
    Bug(
        "a lane is not given back after a failure",
        f"{CORE}/merging/lanes.py",
        "        self._free += 1\n",
        "        self._free += not isinstance(outcome, BaseException)\n",
        MERGING,
    ),
    Bug(
        "a search that cannot be started keeps its lane",
        f"{CORE}/merging/lanes.py",
        "                ended += self._settle(batch, None)\n            else:",
        "                pass\n            else:",
        MERGING,
    ),
    Bug(
        "a search waits for the lane that it runs in",
        f"{CORE}/merging/lanes.py",
        "_inside.set((*_inside.get(), self))",
        "_inside.set(_inside.get())",
        MERGING,
    ),
    Bug(
        "a stopped event loop keeps its lanes",
        f"{CORE}/merging/calls.py",
        "not self.loop.is_running()",
        "self.loop.is_closed()",
        MERGING,
    ),
    Bug(
        "a search is cancelled again while it cleans up",
        f"{CORE}/merging/lanes.py",
        " and gone in batch.calls",
        "",
        MERGING,
    ),
    Bug(
        "a search is begun although nobody waits for it",
        f"{CORE}/merging/lanes.py",
        "if batch.given or batch.unwanted:",
        "if batch.given:",
        MERGING,
    ),
    Bug(
        "one caller's queries come before everybody else's",
        f"{CORE}/merging/line.py",
        "for limit in (share, most):",
        "for limit in (most,):",
        MERGING,
    ),
    Bug(
        "a group with queries left goes in front again",
        f"{CORE}/merging/line.py",
        "            self._groups.move_to_end(name)\n",
        "",
        MERGING,
    ),
    Bug(
        "the door lets in more than there is room for",
        f"{CORE}/merging/line.py",
        "if group.size and group.size + len(call.queries) > self.capacity:",
        "if group.size > self.capacity:",
        MERGING,
    ),
    Bug(
        "what was not recorded stays in a build's files",
        f"{CORE}/retrieval/growing_file.py",
        "if there > size:",
        "if there > size + 10**9:",
        BUILDING,
    ),
    Bug(
        "a build goes on with other passages",
        f"{CORE}/retrieval/building_folder.py",
        'if digest(b"".join(lines)) != entry.lines:',
        "if False:",
        BUILDING,
    ),
    Bug(
        "a build goes on over damaged files",
        f"{CORE}/retrieval/building_folder.py",
        "if (digest(written), digest(content)) != (entry.lines, entry.vectors):",
        "if False:",
        BUILDING,
    ),
    Bug(
        "a build goes on with another encoder of the same name",
        f"{CORE}/retrieval/building.py",
        "self._source.compare(count, some, vectors)",
        "del vectors",
        BUILDING,
    ),
    Bug(
        "a build goes on with other settings",
        f"{CORE}/retrieval/building_journal.py",
        "if differing:",
        "if len(differing) > 9:",
        BUILDING,
    ),
    Bug(
        "a torn entry of the journal counts",
        f"{CORE}/retrieval/building_journal.py",
        'if crc != b"%08x" % zlib.crc32(text):',
        'if not text.endswith(b"}"):',
        BUILDING,
    ),
    Bug(
        "an input that ends early ends the build",
        f"{CORE}/retrieval/building.py",
        "if count < before:",
        "if False:",
        BUILDING,
    ),
    Bug(
        "a finished build takes more passages",
        f"{CORE}/retrieval/building.py",
        "elif self._journal.finished:",
        "elif False:",
        BUILDING,
    ),
    Bug(
        "two builders share a folder",
        f"{CORE}/retrieval/building_folder.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        BUILDING,
    ),
    Bug(
        "a restart keeps what was encoded",
        f"{CORE}/retrieval/building.py",
        "            clear(folder)\n",
        "            pass\n",
        BUILDING,
    ),
    Bug(
        "a failed build is thrown away",
        f"{CORE}/retrieval/building.py",
        "if build.worthless(error) if build else not begun:",
        "if True:",
        BUILDING,
    ),
    Bug(
        "a batch is counted before it is safely on the disk",
        f"{CORE}/retrieval/growing_file.py",
        "            file.write(content)\n            file.flush()\n            os.fsync(",
        "            file.write(content)\n            abs(",
        BUILDING,
    ),
    Bug(
        "a build replaces what was put in its way",
        f"{CORE}/retrieval/building.py",
        "            check_target(target)\n            replace(target, fresh)",
        "            replace(target, fresh)",
        BUILDING,
    ),
    Bug(
        "files shared with the target are rewritten",
        f"{CORE}/retrieval/building_folder.py",
        "            (self._folder / name).unlink(missing_ok=True)\n",
        "",
        BUILDING,
    ),
    Bug(
        "rows of length 1 are scaled with their batch",
        f"{CORE}/retrieval/vectors.py",
        "np.where(unit_rows(squares), 1, np.sqrt(squares))",
        "np.where(squares == 0, 1, np.sqrt(squares))",
        BUILDING,
    ),
    Bug(
        "an id of an earlier batch is not noticed",
        f"{CORE}/retrieval/seen_ids.py",
        "suspects.update(fresh[run[at] == fresh].tolist())",
        "suspects.update([])",
        BUILDING,
    ),
    Bug(
        "ids are sorted in parts that are never merged",
        f"{CORE}/retrieval/seen_ids.py",
        "enumerate(heapq.merge(*map(_read, files), run))",
        "enumerate([*(pair for file in files for pair in _read(file)), *run])",
        BUILDING,
    ),
    Bug(
        "vectors are normalised into a second array",
        f"{CORE}/retrieval/dense.py",
        "out = vectors if own else np.empty",
        "out = np.empty",
        "tests/retrieval/test_memory.py",
    ),
    Bug(
        "a mapped file is read into memory",
        f"{CORE}/retrieval/passage_file.py",
        'np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))',
        "np.load(file, allow_pickle=False)",
        "tests/retrieval/test_memory.py",
    ),
    Bug(
        "a saved place is not checked",
        f"{CORE}/retrieval/passage_file.py",
        "    return bool(taken.all())",
        "    return True",
        STORED,
    ),
    Bug(
        "a passage is read from the line before",
        f"{CORE}/retrieval/passage_file.py",
        "lines[int(offsets[row]) : int(offsets[row + 1])]",
        "lines[int(offsets[row - 1]) : int(offsets[row])]",
        STORED,
    ),
    Bug(
        "a negative row is taken as it is",
        f"{CORE}/retrieval/passage_file.py",
        "return self._passage(at % len(self))",
        "return self._passage(at)",
        STORED,
    ),
    Bug(
        "sizes alone are compared always",
        f"{CORE}/retrieval/recorded.py",
        'if verify == "digests" and ',
        'if verify == "never" and ',
        STORED,
    ),
    Bug(
        "a file's name may lead out of its folder",
        f"{CORE}/retrieval/storage.py",
        '".." not in path.parts and',
        "True and",
        STORED,
    ),
    Bug(
        "what appears at the target while saving is replaced",
        f"{CORE}/retrieval/storage.py",
        "        check_target(target)  # again:",
        "        # again:",
        STORED,
    ),
    Bug(
        "the rounding of rows to half is forgotten",
        f"{CORE}/retrieval/torch_kernel.py",
        "products = copy.error * query_norm + rows * query_error",
        "products = rows * query_error",
        TORCH,
    ),
    Bug(
        "rounding of operands that torch allows is not in the bound",
        f"{CORE}/retrieval/torch_kernel.py",
        "products += ((1 + operand) ** 2 - 1) * rows * query",
        "products += 0 * operand",
        TORCH,
    ),
    Bug(
        "a bound is in another scale than the scores",
        f"{CORE}/retrieval/torch_kernel.py",
        "np.ldexp(sums, up + exponent)",
        "np.ldexp(sums, up)",
        TORCH,
    ),
    Bug(
        "squared lengths are in another scale than the products",
        f"{CORE}/retrieval/torch_kernel.py",
        "exponents - copy.form.exponent)",
        "exponents - exponents)",
        TORCH,
    ),
    Bug(
        "halves overflow",
        f"{CORE}/retrieval/torch_kernel.py",
        "_HALF_TOP = 15",
        "_HALF_TOP = 17",
        TORCH,
    ),
    Bug(
        "the caller's autocast reaches the search",
        f"{CORE}/retrieval/torch_kernel.py",
        "enabled=False",
        "enabled=torch.is_autocast_enabled(self._device.type)",
        TORCH,
    ),
    Bug(
        "searches share their staging buffers",
        f"{CORE}/retrieval/torch_rows.py",
        "stages = self._free.pop()",
        "stages = self._free[-1]",
        TORCH,
    ),
    Bug(
        "a stage is overwritten while it is multiplied",
        f"{CORE}/retrieval/torch_rows.py",
        "            self._copying.wait_event(self._used[slot])\n",
        "",
        TORCH,
    ),
    Bug(
        "a pinned buffer is filled while it is copied",
        f"{CORE}/retrieval/torch_rows.py",
        "        self._copied[slot].synchronize()\n",
        "",
        TORCH,
    ),
    Bug(
        "IVF's lists are asked for a whole batch",
        f"{CORE}/retrieval/faiss_queries.py",
        "near = [self.index.quantizer.search(query[None], probes) for query in queries]",
        "near = [self.index.quantizer.search(queries, probes)] if len(queries) else []",
        FAISS,
    ),
    Bug(
        "a row that FAISS did not find is a passage",
        f"{CORE}/retrieval/faiss_approximate.py",
        "rows[rows >= 0]",
        "rows",
        FAISS,
    ),
    Bug(
        "threads answer in another order",
        f"{CORE}/retrieval/faiss_queries.py",
        "lambda query: self._one(query, count, rank), queries)",
        "lambda query: self._one(query, count, rank), queries[::-1])",
        FAISS,
    ),
    Bug(
        "the slowest way is taken",
        f"{CORE}/retrieval/fastest.py",
        "min(seconds, key",
        "max(seconds, key",
        FAISS,
    ),
    Bug(
        "a replica guesses under its own signature",
        f"{CORE}/speculation/replica.py",
        "self.signature: Hashable = of.signature",
        "self.signature: Hashable = retriever.signature",
        FAISS,
    ),
    Bug(
        "a margin is not certified",
        f"{CORE}/retrieval/ranking.py",
        "if width == size or",
        "if True or",
        BACKENDS,
    ),
    Bug(
        "ties are broken by row",
        f"{CORE}/retrieval/dense.py",
        "best_first(scores, self.places[rows], k)",
        "best_first(scores, rows, k)",
        BACKENDS,
    ),
    Bug(
        "a part of a BM25 score is computed in double",
        f"{CORE}/retrieval/lucene_bm25.py",
        "parts = weights - weights /",
        "parts = weights.astype(np.float64) - weights /",
        BM25,
    ),
    Bug(
        "a BM25 score is not rounded to float32",
        f"{CORE}/retrieval/lucene_bm25.py",
        "].astype(np.float32)\n\n    def _number",
        "]\n\n    def _number",
        BM25,
    ),
    Bug(
        "long passages have their exact length",
        f"{CORE}/retrieval/lucene_bm25.py",
        "return _SMALL + (bits if shift < 0 else (bits | 8) << shift)",
        "return code",
        BM25,
    ),
    Bug(
        "the terms of a passage that left still count",
        f"{CORE}/retrieval/lucene_bm25.py",
        "        self._slots[start:stop] = self._capacity\n        self._live",
        "        self._live",
        BM25,
    ),
    Bug(
        "the last query's weights stay",
        f"{CORE}/retrieval/lucene_bm25.py",
        "        self._weights[places] = 0\n",
        "",
        BM25,
    ),
    Bug(
        "terms keep their numbers when room is made",
        f"{CORE}/retrieval/lucene_bm25.py",
        "{words[old]: new for",
        "{words[old]: old for",
        BM25,
    ),
    Bug(
        "Lucene breaks ties by its own numbers",
        f"{CORE}/retrieval/lucene_index.py",
        "(field.FIELD_SCORE, by_id)",
        "(field.FIELD_SCORE, field.FIELD_DOC)",
        LUCENE,
    ),
    Bug(
        "a batch of Lucene's comes back in another order",
        f"{CORE}/retrieval/lucene.py",
        "found[at::step] = hits",
        "found[at::step] = hits[::-1]",
        LUCENE,
    ),
    Bug(
        "a query's repeated terms count once",
        f"{CORE}/retrieval/lucene.py",
        "np.float32(count) * self._idf(term)",
        "self._idf(term)",
        LUCENE,
    ),
    Bug(
        "lengths are read for the wrong passages",
        f"{CORE}/retrieval/lucene_passages.py",
        "sorted(wanted.keys() - known.keys())",
        "sorted(wanted.keys() - known.keys(), reverse=True)",
        LUCENE,
    ),
    Bug(
        "Java's methods are shared by its objects",
        f"{CORE}/retrieval/lucene_calls.py",
        "return _Bound(getattr(jnius.cast(own, target), name), own)",
        "return getattr(jnius.cast(kind, target), name)",
        JVM,
    ),
    Bug(
        "Java takes over Ctrl-C",
        f"{CORE}/retrieval/lucene_jvm.py",
        '    "-Xrs",',
        '    "-Xss1m",',
        JVM,
    ),
    Bug(
        "Lucene's log is printed",
        f"{CORE}/retrieval/lucene_jvm.py",
        "    if not foreign:\n        jnius.autoclass",
        "    if foreign:\n        jnius.autoclass",
        JVM,
    ),
    Bug(
        "a query is encoded behind a batch of searches",
        f"{CORE}/retrieval/lucene.py",
        "self._encoded(text), quick=True",
        "self._encoded(text)",
        JVM,
    ),
)


ALL_BUGS = (
    *BUGS,
    *BUGS_KNN_DATASTORE,
    *BUGS_KNN_HOSTS,
    *BUGS_KNN_MODEL,
    *BUGS_KNN_SEARCH,
    *BUGS_LANGCHAIN,
    *BUGS_LLAMA_INDEX,
    *BUGS_THREADS,
)


def main() -> int:
    """Plant every bug; fail if one goes unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="plant only the bugs whose name has this word")
    word = parser.parse_args().only
    chosen = [bug for bug in ALL_BUGS if word in bug.name]
    missed = [bug for bug in chosen if not report(bug)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} planted bugs were caught")
    return 1 if missed else 0


def report(bug: Bug) -> bool:
    """Plant one bug and say how it was caught."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in (CORE, "integrations", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / bug.file
        text = file.read_text()
        if bug.right not in text:
            print(f"STALE   {bug.name}: {bug.file} no longer has what is to be replaced")
            return False
        file.write_text(text.replace(bug.right, bug.wrong))
        command = [sys.executable, "-m", "pytest", "-n0", "-qx", "--tb=line", "--show-capture=no"]
        try:
            run = subprocess.run(
                [*command, *bug.tests.split()],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                capture_output=True,
                timeout=MOST_S,
                check=False,
            )
            verdict = "caught" if run.returncode == 1 else "MISSED"
        except subprocess.TimeoutExpired:
            verdict = "hung"  # a test that does not end has noticed, too
        print(f"{verdict:7} {bug.name}", flush=True)
        return verdict != "MISSED"


if __name__ == "__main__":
    sys.exit(main())
