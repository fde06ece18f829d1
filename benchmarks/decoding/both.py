"""Both speculations at once: on passages and on tokens, against each alone and a bound."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.decoding.journal import Journal
from benchmarks.decoding.tasks import SEED
from benchmarks.harness.inputs import LoadedModel, world_library
from ralmspec_plugins.decoding import Decoding, SuffixDrafter
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.retrieval import HashingEncoder
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.types import Hits, Query, Request
from ralmspec_plugins.workloads import Interval

Row = dict[str, Any]
INTERVALS: Final = (4, 16, 64)


class DelayedRetriever:
    """A retriever that answers so many seconds later, as a remote one does."""

    def __init__(self, inner: NumpyFlat, delay_s: float) -> None:
        self._inner = inner
        self._delay_s = delay_s
        self.k = inner.k
        self.signature = inner.signature

    def encode(self, text: str) -> Query:
        return self._inner.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        time.sleep(self._delay_s)
        return self._inner.search(queries)

    def table(self, capacity: int) -> Any:
        return self._inner.table(capacity)


def measure_both(
    loaded: LoadedModel,
    requests: int,
    tokens: int,
    delay_s: float,
    journal: Journal,
    watch: Callable[[Row], None],
) -> list[Row]:
    """Answer requests four ways at each interval; all answers are asserted equal."""
    inner = NumpyFlat.build(world_library().passages, HashingEncoder(), k=1)
    retriever: Retriever = DelayedRetriever(inner, delay_s)
    models = {
        name: HuggingFaceLM(
            loaded.model, loaded.tokenizer, template=loaded.template, decoding=decoding
        )
        for name, decoding in (
            ("one token a pass", None),
            ("drafts", Decoding(drafter=SuffixDrafter())),
        )
    }
    asked = [
        Request(prompt=one.prompt, max_tokens=tokens)
        for one in make_world(DEMO_SEED).questions(requests, SEED)
    ]

    def answered(interval: int, number: int) -> list[Row]:
        rows: list[Row] = []
        texts = set()
        for name, lm in models.items():
            workload = Interval(lm, interval=interval)
            with Engine(workload, retriever) as engine:
                for way, run in (
                    ("plain loop", lambda r, w=workload: plain(w, retriever, r)),
                    ("speculative", engine.run),
                ):
                    began_s = time.perf_counter()
                    answer = run(asked[number])
                    took_s = time.perf_counter() - began_s
                    texts.add(answer.text)
                    row = {"interval": interval, "request": number, "loop": way, "model": name}
                    counts = {
                        "searches": answer.stats.searches,
                        "passes": answer.stats.model_passes,
                    }
                    rows.append({**row, **counts, "seconds": took_s})
                    watch(rows[-1])
        assert len(texts) == 1, f"interval {interval}, request {number}: {texts}"
        return rows

    return [
        row
        for interval in INTERVALS
        for number in range(len(asked))
        for row in journal.of(f"both {interval} {number}", partial(answered, interval, number))
    ]


def summary_of_both(rows: Sequence[Row], delay_s: float) -> list[Row]:
    """Return, by interval and way, the seconds, how many times as fast that is, and the bound.

    The bound of both at once: the plain loop with drafts, of whose searches the first alone
    is waited for.
    """
    by: dict[int, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by[row["interval"]][row["loop"], row["model"]].append(row)
    told: list[Row] = []
    for interval, ways in by.items():
        seconds = {way: sum(row["seconds"] for row in found) for way, found in ways.items()}
        drafted = ways["plain loop", "drafts"]
        waited = delay_s * sum(row["searches"] - 1 for row in drafted)
        best = seconds["plain loop", "drafts"] - waited
        base = seconds["plain loop", "one token a pass"]
        for (loop, model), took_s in seconds.items():
            row = {"interval": interval, "loop": loop, "model": model}
            told.append({**row, "seconds": took_s, "speed": base / took_s, "bound": base / best})
    return told
