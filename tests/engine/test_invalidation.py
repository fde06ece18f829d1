"""`invalidate()` of the engines: what was found before is seen by no later request."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from ralmspec_plugins import (
    Answer,
    AsyncEngine,
    Engine,
    PassageCache,
    QueryCache,
    Settings,
    SharedPassageCache,
)
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits, Query

OLD = ["red old fox", "blue old whale", "green old frog"]
NEW = ["red new fox", "blue new whale", "green new frog"]
PROMPT = "red blue green"


class Changing:
    """A retriever over texts that change; each search reads them first, and may be held up."""

    signature = "changing"
    exact = True
    k = 1

    def __init__(self) -> None:
        self.texts = OLD
        self.searches = 0
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def encode(self, text: str) -> Query:
        return WordRetriever(self.texts, k=1).encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        self.searches += 1
        found = list(WordRetriever(self.texts, k=1).search(queries))
        self.reading.set()
        assert self.go_on.wait(10)
        return found


class Shown(EchoWorkload):
    """Notes each passage that a step was written with, dropped steps included."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        self.prompts += [hit.passage.text for hit in hits]
        return super().extend(state, hits, progress)


def settings_of(sharing: str, retriever: Any) -> Settings:
    if sharing == "memo":
        return Settings(memo=QueryCache(), pool=SharedPassageCache())
    if sharing == "pool":
        return Settings(pool=SharedPassageCache())
    cache = PassageCache(retriever)
    if sharing == "speculators":
        return Settings(speculators=[cache])
    if sharing == "function":
        return Settings(speculators=lambda: [cache])
    return Settings()


def answered(engine: Any, way: str) -> Answer:
    """Answer by the engine's `run` or `batch`, on threads or on an event loop."""
    if way == "run":
        answer: Any = engine.run(PROMPT)
    else:
        answer = engine.batch([PROMPT])
    if asyncio.iscoroutine(answer):
        answer = asyncio.run(answer)
    found: Answer = answer[0] if way == "batch" else answer
    return found


def closed(engine: Any) -> None:
    closing = engine.close()
    if asyncio.iscoroutine(closing):
        asyncio.run(closing)


@pytest.mark.parametrize("kind", [Engine, AsyncEngine])
@pytest.mark.parametrize("way", ["run", "batch"])
@pytest.mark.parametrize("sharing", ["memo", "pool", "speculators", "function", "none"])
def test_no_later_request_is_shown_what_was_found_before(kind: Any, way: str, sharing: str) -> None:
    """In no prompt, dropped ones included, whatever requests share."""
    retriever, workload = Changing(), Shown()
    engine = kind(workload, retriever, settings_of(sharing, retriever))
    before = answered(engine, way)
    retriever.texts = NEW
    engine.invalidate()
    workload.prompts.clear()
    after = answered(engine, way)
    closed(engine)

    assert [before.text, after.text] == ["\n".join(OLD), "\n".join(NEW)]
    assert workload.prompts
    assert all("old" not in shown for shown in workload.prompts)


@pytest.mark.parametrize("sharing", ["memo", "pool", "speculators", "function"])
def test_a_search_in_flight_is_not_remembered(sharing: str) -> None:
    """It read the old texts, and returns after the invalidation."""
    retriever, workload = Changing(), Shown()
    retriever.go_on.clear()
    with Engine(workload, retriever, settings_of(sharing, retriever)) as engine:
        answers: list[Answer] = []
        running = threading.Thread(target=lambda: answers.append(engine.run("red")))
        running.start()
        assert retriever.reading.wait(10)
        retriever.texts = NEW
        engine.invalidate()
        retriever.go_on.set()
        running.join(10)
        workload.prompts.clear()
        after = engine.run("red")

    assert [answers[0].text, after.text] == [OLD[0], NEW[0]]
    assert workload.prompts
    assert all("old" not in shown for shown in workload.prompts)


def test_without_it_the_memo_answers() -> None:
    """Until its time is over: the stated bound."""
    now_s = [0.0]
    retriever, memo = Changing(), QueryCache(ttl_s=10, clock=lambda: now_s[0])
    with Engine(EchoWorkload(), retriever, Settings(memo=memo)) as engine:
        texts = []
        for moment_s in (0.0, 9.0, 10.0):
            now_s[0] = moment_s
            texts.append(engine.run("red").text)
            retriever.texts = NEW

    assert texts == [OLD[0], OLD[0], NEW[0]]


def test_other_retrievers_keep_what_was_found() -> None:
    """A memo and a pool may serve many: their parts are forgotten alone."""
    ours, theirs = Changing(), Changing()
    theirs.signature = "another"
    settings = Settings(memo=QueryCache(), pool=SharedPassageCache())
    with (
        Engine(EchoWorkload(), ours, settings) as engine,
        Engine(EchoWorkload(), theirs, settings) as other,
    ):
        for one in (engine, other):
            one.run(PROMPT)
        counts = ours.searches, theirs.searches
        engine.invalidate()
        for one in (engine, other):
            one.run(PROMPT)

    assert ours.searches > counts[0]
    assert theirs.searches == counts[1]
