"""Both speculations at once: on passages and on tokens, against each alone and a bound."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

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
    loaded: LoadedModel, requests: int, tokens: int, delay_s: float, watch: Callable[[Row], None]
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
    rows: list[Row] = []
    for interval in INTERVALS:
        for number, request in enumerate(asked):
            texts = set()
            for name, lm in models.items():
                workload = Interval(lm, interval=interval)
                with Engine(workload, retriever) as engine:
                    for way, run in (
                        ("plain loop", lambda r, w=workload: plain(w, retriever, r)),
                        ("speculative", engine.run),
                    ):
                        began_s = time.perf_counter()
                        answer = run(request)
                        took_s = time.perf_counter() - began_s
                        texts.add(answer.text)
                        row = {"interval": interval, "request": number, "loop": way}
                        rows.append({**row, "model": name, "seconds": took_s})
                        watch(rows[-1])
            assert len(texts) == 1, f"interval {interval}, request {number}: {texts}"
    return rows
