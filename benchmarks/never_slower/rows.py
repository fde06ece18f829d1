"""What is measured: each row opens two ways to answer the same requests, plain and speculative."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

from benchmarks.never_slower.parts import (
    FarStore,
    Looking,
    Pace,
    WrongGuesses,
    article_texts,
    digest,
)
from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    Engine,
    Interval,
    Passage,
    Replica,
    Request,
    Settings,
    SharedPassageCache,
    open_retriever,
)
from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.demo.corpora import world_corpus
from ralmspec_plugins.lm import HuggingFaceLM
from ralmspec_plugins.types import Answer

Way: TypeAlias = Callable[[int], list[Any]]  # answers all requests of a repetition
Opened: TypeAlias = tuple[Way, Way]  # the one that must not be beaten, and the speculative one


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        name: of the row.
        about: what runs, and against what.
        opened: opens both ways.
        repetitions: of both, in turn.
    """

    name: str
    about: str
    opened: Callable[[], Any]  # a context of `Opened`
    repetitions: int = 12


def _texts(answers: Sequence[Answer]) -> list[Any]:
    """Return what must be equal: texts, and the sources with their scores."""
    return [(one.text, one.retrieved) for one in answers]


# One request at a time over stores that wait


@contextmanager
def _two_engines(
    workload: Any,
    retriever: Any,
    settings: Settings,
    base: Settings | None = None,
    *,
    anew: bool = False,
    prompt: Callable[[int], str] = lambda _: "amber birch cedar delta",
) -> Iterator[Opened]:
    """Open an engine for each way; with `anew` one for each request."""

    def run(chosen: Settings, repetition: int) -> list[Any]:
        with Engine(workload, retriever, chosen) as engine:
            return _texts([engine.run(prompt(repetition))])

    base = base or replace(settings, speculate=False)
    if anew:
        yield partial(run, base), partial(run, settings)
        return
    with Engine(workload, retriever, base) as first, Engine(workload, retriever, settings) as ours:
        yield (
            lambda repetition: _texts([first.run(prompt(repetition))]),
            lambda repetition: _texts([ours.run(prompt(repetition))]),
        )


@contextmanager
def encoder() -> Iterator[Opened]:
    """A query's encoding stands in series with writing."""
    store = FarStore(article_texts(200), search_s=0.05, encode_s=0.02)
    settings = Settings(schedule=Continuous(lanes=8))
    with _two_engines(Looking(12, Pace(wait_s=0.025)), store, settings) as opened:
        yield opened


@contextmanager
def wrong_guesses() -> Iterator[Opened]:
    """All guesses are wrong, and a segment cannot be stopped."""
    store = FarStore(article_texts(200), search_s=0.03)
    settings = Settings(speculators=[WrongGuesses()])
    workload = Looking(12, Pace(wait_s=0.03, stops=False))
    with _two_engines(workload, store, settings, anew=True) as opened:
        yield opened


def _new_question(repetition: int) -> str:
    return article_texts(200)[digest("new", repetition) % 200]


@contextmanager
def one_shot(*, replica: bool) -> Iterator[Opened]:
    """One retrieval for each new question; with a replica, against the replica alone."""
    texts = article_texts(200)
    store, near = FarStore(texts, search_s=0.1, k=4), FarStore(texts, search_s=0.002, k=4)
    pool = SharedPassageCache()
    workload = Looking(1, Pace(wait_s=0.1))
    base, settings = None, Settings(pool=pool)
    if replica:
        guessing = Replica(near, of=store)
        base = Settings(speculators=[guessing])
        settings = Settings(speculators=[pool.of(store), guessing])
    with _two_engines(workload, store, settings, base, prompt=_new_question) as opened:
        yield opened


@contextmanager
def duplicates(wait_s: float) -> Iterator[Opened]:
    """One retrieval over LangChain's FAISS store, whose texts stand there four times each."""
    from benchmarks.never_slower.hosts import duplicate_chain

    with duplicate_chain(wait_s, article_texts(200, repeated=4)) as opened:
        yield opened


# Many requests at once over a local BM25, on a model that uses the processor


_COMPUTING: Final = Pace(products=4)


def _bm25() -> Any:
    texts = article_texts(2000)
    return open_retriever("bm25s", [Passage(f"p{n}", text) for n, text in enumerate(texts)], k=2)


def _prompts(count: int, repetition: int) -> list[str]:
    texts = article_texts(2000)
    return [texts[digest(repetition, n) % len(texts)] for n in range(count)]


@contextmanager
def at_once(requests: int, steps: int) -> Iterator[Opened]:
    """So many threads, each with a request of its own."""
    workload, retriever = Looking(steps, _COMPUTING, drifting=True), _bm25()

    def run(engine: Engine, threads: ThreadPoolExecutor, repetition: int) -> list[Any]:
        return _texts(list(threads.map(engine.run, _prompts(requests, repetition))))

    with (
        ThreadPoolExecutor(requests) as threads,
        Engine(workload, retriever, Settings(speculate=False)) as plain,
        Engine(workload, retriever) as ours,
    ):
        yield partial(run, plain, threads), partial(run, ours, threads)


@contextmanager
def batch(requests: int, steps: int) -> Iterator[Opened]:
    """`Engine.batch`, 16 at a time, as it is by default."""
    workload, retriever = Looking(steps, _COMPUTING, drifting=True), _bm25()
    with (
        Engine(workload, retriever, Settings(speculate=False)) as plain,
        Engine(workload, retriever) as ours,
    ):
        yield (
            lambda repetition: _texts(plain.batch(_prompts(requests, repetition))),
            lambda repetition: _texts(ours.batch(_prompts(requests, repetition))),
        )


@contextmanager
def on_asyncio(requests: int, steps: int) -> Iterator[Opened]:
    """All of them as tasks of one event loop."""
    workload, retriever = Looking(steps, _COMPUTING, drifting=True), _bm25()

    async def run_all(settings: Settings, repetition: int) -> list[Any]:
        async with AsyncEngine(workload, retriever, settings) as engine:
            asked = _prompts(requests, repetition)
            return _texts(await asyncio.gather(*(engine.run(one) for one in asked)))

    def run(settings: Settings, repetition: int) -> list[Any]:
        return asyncio.run(run_all(settings, repetition))

    yield partial(run, Settings(speculate=False)), partial(run, Settings())


# The demo's first act: a local model over a local store, streamed


@contextmanager
def first_act(tokens: int) -> Iterator[Opened]:
    """The questions of `ralmspec demo`, in turn, streamed as there."""
    corpus = world_corpus(4)
    retriever = open_retriever("bm25s", list(corpus.passages))

    def workload() -> Interval[Any]:
        return Interval(HuggingFaceLM.from_pretrained(MODEL), interval=4, query_tokens=32)

    def run(engine: Engine, repetition: int) -> list[Any]:
        prompt = corpus.prompts[repetition % len(corpus.prompts)]
        with closing(engine.stream(Request(prompt=prompt, max_tokens=tokens))) as stream:
            text = "".join(stream)
            return [text, *_texts([stream.answer])]

    with (
        Engine(workload(), retriever, Settings(speculate=False)) as plain,
        Engine(workload(), retriever, Settings(schedule=Continuous(lanes=1))) as ours,
    ):
        yield partial(run, plain), partial(run, ours)


def rows(*, small: bool = False) -> Mapping[str, Row]:
    """Return all rows by name; small ones only show that everything runs."""
    crowd, many, steps, tokens = (6, 8, 2, 8) if small else (64, 500, 6, 64)
    found = [
        Row(
            name="encoder",
            about="12 segments of 25 ms, an encoder of 20 ms, a store 50 ms away (all waiting)",
            opened=encoder,
        ),
        Row(
            name="replica-and-pool",
            about="one-shot, new questions: replica and pool against the replica alone",
            opened=partial(one_shot, replica=True),
            repetitions=40,
        ),
        Row(
            name="new-questions",
            about="one-shot, new questions, a pool and no replica",
            opened=partial(one_shot, replica=False),
            repetitions=40,
        ),
        *(
            Row(
                name=f"duplicates-{1000 * wait_s:.0f}ms",
                about=f"one-shot over duplicate texts in FAISS, {1000 * wait_s:.0f} ms away",
                opened=partial(duplicates, wait_s),
                repetitions=count,
            )
            for wait_s, count in ((0.005, 60), (0.05, 40), (0.3, 16))
        ),
        Row(
            name="wrong-guesses",
            about="12 segments of 30 ms that cannot be stopped, all guesses wrong, engines anew",
            opened=wrong_guesses,
            repetitions=16,
        ),
        Row(
            name="eight-at-once",
            about="8 threads over a local BM25, a model that computes",
            opened=partial(at_once, 2 if small else 8, 2 * steps),
            repetitions=30,
        ),
        Row(
            name="threads-64",
            about="64 threads over a local BM25, a model that computes",
            opened=partial(at_once, crowd, steps),
            repetitions=12,
        ),
        Row(
            name="asyncio-500",
            about="500 tasks over a local BM25, a model that computes",
            opened=partial(on_asyncio, many, steps),
            repetitions=6,
        ),
        Row(
            name="batch-500",
            about="batch() of 500 over a local BM25, a model that computes",
            opened=partial(batch, many, steps),
            repetitions=6,
        ),
        Row(
            name="demo-first-act",
            about="the demo's model over its BM25, streamed",
            opened=partial(first_act, tokens),
            repetitions=16,
        ),
    ]
    return {row.name: row for row in found}
