"""Measures one cell: all ways in turn, prompt by prompt, with equal tokens and records asserted."""

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, Final

from benchmarks.harness.cases import PLAIN_NAME
from benchmarks.harness.measure import at_rest
from benchmarks.harness.results import Row, row_of
from benchmarks.knn.inputs import Prompt
from benchmarks.knn.ways import FIXED, PLAIN, Way
from ralmspec_plugins.config import Settings
from ralmspec_plugins.diagnosis import UnequalError, check_equal
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.interpolation import Mixing, interpolate
from ralmspec_plugins.knn.model import LogProbSampler
from ralmspec_plugins.knn.search import ExactSearch, Neighbours, NeighbourSearch, encode_no_text
from ralmspec_plugins.knn.state import Choices, KNNDraft, TokenModel
from ralmspec_plugins.knn.workload import KNNLM
from ralmspec_plugins.lm.sampling import Greedy
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.types import Answer, Hits, Query, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured together.

    Args:
        model: its name.
        search: "exact", "exact beside", an approximate one by its name, or that behind a delay.
        k: how many neighbours vote.
        weight: their share.
        tokens: of each text.
        repetitions: of all prompts.
        ways: beside the plain one.
    """

    model: str
    search: str
    k: int
    weight: float = 0.25
    tokens: int = 48
    repetitions: int = 3
    ways: tuple[Way, ...] = ()

    @property
    def name(self) -> str:
        """Name it."""
        return f"{self.model}, {self.search}, k = {self.k}"

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it, and as `harness.report` reads it."""
        return {
            "name": self.name,
            "model": self.model,
            "search": self.search,
            "k": self.k,
            "weight": self.weight,
            "tokens": self.tokens,
            "repetitions": self.repetitions,
            "concurrency": 1,
            "arms": [way.record() for way in self.ways],
        }


def measure(
    cell: Cell,
    model: TokenModel,
    search: NeighbourSearch,
    prompts: Sequence[Prompt],
    watch: Callable[[Row], None] | None = None,
    replica: NeighbourSearch | None = None,
) -> dict[str, Any]:
    """Measure a cell: plain, A, B, plain, A, B, and so on, for each prompt and repetition.

    One round over the first prompt warms up, and is not counted. With each repetition what
    engines learn of costs begins anew; what is guessed with begins anew with each request.

    Args:
        cell: what is measured.
        model: keeps nothing of one run for the next.
        search: of the cell's name and k.
        prompts: what is continued.
        watch: is shown each row.
        replica: what ways with a replica guess with; less than a millisecond a query.

    Returns:
        The cell, and one row for each run, as JSON takes it.

    Raises:
        UnequalError: a text or its neighbours are not the plain loop's.
    """
    rows: list[Row] = []
    with at_rest():
        for repetition in range(-1, cell.repetitions):
            asked = prompts if repetition >= 0 else prompts[:1]
            for row in _round(cell, model, search, asked, replica):
                if repetition < 0:
                    continue
                rows.append({"repetition": repetition, **row})
                if watch is not None:
                    watch(rows[-1])
    return {"case": cell.record(), "rows": rows}


def request_of(prompt: Prompt, tokens: int) -> Request:
    """Ask for so many tokens behind a prompt."""
    return Request(prompt=prompt.text, max_tokens=tokens)


def check_same(prompt: str, plain: Answer, answer: Answer) -> None:
    """Compare tokens, text, queries and neighbours, with their distances, to the bit.

    Raises:
        UnequalError: they differ.
    """
    if plain.state.tokens != answer.state.tokens:
        raise UnequalError(
            f"{prompt!r}: the two runs' tokens differ: {plain.state.tokens} and "
            f"{answer.state.tokens}"
        )
    check_equal(prompt, plain, answer)


def workload_of(model: TokenModel, weight: float) -> KNNLM:
    """Write greedily with this share of the neighbours."""
    return KNNLM(model, LogProbSampler(Greedy()), Mixing(weight=weight))


def _round(
    cell: Cell,
    model: TokenModel,
    search: NeighbourSearch,
    prompts: Sequence[Prompt],
    replica: NeighbourSearch | None,
) -> Iterator[Row]:
    """Run all prompts in all ways, the plain one first."""
    retriever: Any = search  # whose lists of neighbours are lists of hits
    cheap: Any = replica
    guesser = None if replica is None else Replica(cheap, retriever, inline=True)
    with ExitStack() as stack:
        engines = {
            way.name: stack.enter_context(
                Engine(
                    workload_of(model, cell.weight),
                    retriever,
                    way.settings(search.datastore, cell.k, guesser),
                )
            )
            for way in (PLAIN, *cell.ways)
        }
        for number, prompt in enumerate(prompts):
            plain: Answer | None = None
            for name, engine in engines.items():
                gc.collect()  # not in the middle of the run
                answer = engine.run(request_of(prompt, cell.tokens))
                plain = answer if plain is None else plain
                check_same(f"{cell.name}, {name}: {prompt.text}", plain, answer)
                told = {"request": number, "source": prompt.source, "place": prompt.place}
                yield {**told, "arm": name, **row_of(answer, plain)}


def plain_rows(record: dict[str, Any]) -> list[Row]:
    """Give the plain runs of a measured cell."""
    return [row for row in record["rows"] if row["arm"] == PLAIN_NAME]


# A model and a search that do everything once: what was asked before is answered from memory.
#
# The same texts are continued in dozens of ways to count guesses and to simulate; all of
# it is what the model and the datastore really say, and only the time is not theirs.


class RememberingModel:
    """Reads each text once. For one thread."""

    def __init__(self, model: TokenModel) -> None:
        """Remember what this model says."""
        self._model = model
        self._begun: dict[Request, KNNDraft] = {}
        self._written: dict[tuple[int, tuple[int, ...]], KNNDraft] = {}  # by request and tokens

    def begin(self, request: Request) -> KNNDraft:
        """Read a prompt."""
        if request not in self._begun:
            self._begun[request] = self._model.begin(request)
        return _anew(self._begun[request])

    def feed(self, state: KNNDraft, token: int, progress: Progress) -> KNNDraft:
        """Write a token."""
        key = state.draft.origin.owner, (*state.tokens, token)
        if key not in self._written:
            self._written[key] = self._model.feed(state, token, progress)
        return _anew(self._written[key])

    def release(self, state: KNNDraft) -> None:
        """Keep everything: the same request comes again."""

    def forget(self) -> None:
        """Free all that is kept."""
        for state in self._begun.values():
            self._model.release(state)
        self._begun.clear()
        self._written.clear()


class OfK:
    """An exact search that gives fewer neighbours than it could, over the same keys in memory."""

    exact = True
    pure = True
    inline_encode = True

    def __init__(self, search: ExactSearch, k: int) -> None:
        """Ask this search for k neighbours."""
        self._search = search
        self.k = k
        self.size = search.size
        self.datastore: Datastore = search.datastore
        self.signature: Hashable = ("of", k, search.signature)

    def encode(self, text: str) -> Query:
        """Refuse a text.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Find the k nearest entries of each query."""
        return self._search.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Find the `width` nearest entries of each query."""
        return self._search.search_wide(queries, width)


class Remembered:
    """What searches have found, by query."""

    def __init__(self, search: NeighbourSearch) -> None:
        """Remember what this search finds."""
        self.inner = search
        self._found: dict[Hashable, Neighbours] = {}

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Search for those that were not asked before, in one batch, and give all."""
        missing = {query.key: query for query in queries if query.key not in self._found}
        if missing:
            found = self.inner.search(list(missing.values()))
            self._found.update(zip(missing, found, strict=True))
        return [self._found[query.key] for query in queries]

    def forget(self) -> None:
        """Free all that is kept."""
        self._found.clear()


class RememberedSearch:
    """A search for k neighbours that looks for each query's once."""

    pure = True
    inline_encode = True

    def __init__(self, remembered: Remembered, k: int) -> None:
        """Give the first k of what is remembered; all of it where the search is not exact."""
        inner = remembered.inner
        assert k == inner.k or (inner.exact and k < inner.k), "only exact rankings are prefixes"
        self._remembered = remembered
        self.k = k
        self.size = inner.size
        self.exact = inner.exact
        self.datastore = inner.datastore
        self.signature: Hashable = ("remembered", k, inner.signature)

    def encode(self, text: str) -> Query:
        """Refuse a text.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Give the k nearest entries of each query."""
        return [found[: self.k] for found in self._remembered.search(queries)]


class RememberedWideSearch(RememberedSearch):
    """The same over an exact search, which may be asked for more than k."""

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Give the `width` nearest entries of each query, as far as they are remembered."""
        return [found[:width] for found in self._remembered.search(queries)]


def remembered_search(remembered: Remembered, k: int) -> RememberedSearch:
    """Search for k neighbours among what is remembered, wider where that is the same ranking."""
    kind = RememberedWideSearch if remembered.inner.exact else RememberedSearch
    return kind(remembered, k)


def _anew(state: KNNDraft) -> KNNDraft:
    """Give a state whose choices nobody has made: they depend on how it is asked."""
    return replace(state, choices=Choices())


# Where a token's time goes: the model's pass, the search, guessing, choosing, the loop.
#
# The parts are timed one by one on the states and neighbours of real texts. What loop and
# threads take is seen in runs in which passes and searches are remembered and take nothing.


SIZES: Final = (1, 2, 4, 8, 16, 32)
_REPEATS: Final = 7


class Known:
    """Guesses the truth from memory, and learns nothing: what is left is the loop."""

    inline = True

    def __init__(self, search: Any) -> None:
        """Give what this search remembers."""
        self._search = search

    def guess(self, query: Query) -> Neighbours:
        """Give the truth."""
        found: list[Neighbours] = self._search.search([query])
        return found[0]

    def learn(self, query: Query, hits: Hits) -> None:
        """Nothing is unknown."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token as the plain loop writes it: the state, what was found, and its pass."""

    state: KNNDraft
    query: Query
    found: Neighbours
    pass_s: float


def profile(
    model: TokenModel,
    search: NeighbourSearch,
    prompts: Sequence[Prompt],
    *,
    weight: float,
    tokens: int,
    way: Way = FIXED[-1],
) -> dict[str, Any]:
    """Time the parts of a token, in microseconds.

    Args:
        model: what continues the prompts.
        search: what is looked up; its k is that of all parts.
        prompts: what is continued.
        weight: the neighbours' share.
        tokens: of each text.
        way: whose cache and whose loop are timed; one that guesses whatever work takes.
    """
    remembered, once = Remembered(search), RememberingModel(model)
    requests = [request_of(prompt, tokens) for prompt in prompts]
    texts = [_steps(once, remembered, request, weight) for request in requests]
    steps = [step for text in texts for step in text]
    known = remembered_search(remembered, search.k)
    guessing = way.settings(search.datastore, search.k)
    knowing = Settings(
        schedule=guessing.schedule, prefetch=search.k, speculators=lambda: (Known(known),)
    )
    looped = partial(_loop_us, once, known, requests, weight)
    return {
        "k": search.k,
        "search": type(search).__name__,
        "way": way.name,
        "tokens": len(steps),
        "parts_us": {
            "pass": _us(step.pass_s for step in steps),
            "choosing": _us(_choosing(steps, weight)),
            "guessing": _us(_guessing(texts, guessing)),
        },
        "search_us": {str(size): _search_us(search, steps, size) for size in SIZES},
        "loop_us": {
            "plain": looped(PLAIN.settings(search.datastore, search.k)),
            "knowing all": looped(knowing),
            "guessing": looped(guessing),
        },
    }


def _steps(
    model: RememberingModel, remembered: Remembered, request: Request, weight: float
) -> list[Step]:
    """Write a text plainly; passes take what they take, since they are the first of their kind."""
    workload, steps = workload_of(model, weight), []
    state = workload.start(request)
    while (query := workload.query(state)) is not None:
        found = remembered.search([query])[0]
        token = workload.chosen(state, found)
        began_s = time.perf_counter()
        after = model.feed(state, token, Progress())
        steps.append(Step(state, query, found, time.perf_counter() - began_s))
        state = after
    return steps


def _choosing(steps: Sequence[Step], weight: float) -> Iterable[float]:
    """Time mixing and choosing, which a step does once for its guess and once for the truth."""
    for step in steps:
        assert step.state.log_probs is not None
        began_s = time.perf_counter()
        interpolate(step.state.log_probs, step.found, weight, 1.0).argmax()
        yield time.perf_counter() - began_s


def _guessing(texts: Sequence[Sequence[Step]], settings: Settings) -> Iterator[float]:
    """Time a guess as each text goes on, with taking in what the last search found."""
    for text in texts:
        made = settings.speculators
        assert callable(made)
        (cache,) = made()
        for step in text:
            yield _took_s(partial(cache.guess, step.query))
            cache.learn(step.query, step.found)


def _search_us(search: NeighbourSearch, steps: Sequence[Step], size: int) -> float:
    """Time one search of so many queries."""
    times = []
    for repeat in range(_REPEATS):
        queries = [steps[(repeat * size + place) % len(steps)].query for place in range(size)]
        times.append(_took_s(partial(search.search, queries)))
    return _us(times)


def _loop_us(
    model: RememberingModel,
    search: Any,
    requests: Sequence[Request],
    weight: float,
    settings: Settings,
) -> float:
    """Time a token of whole runs in which passes and searches take nothing."""
    times = []
    with Engine(workload_of(model, weight), search, settings) as engine:
        for request in requests:
            engine.run(request)  # what is off the plain path is remembered from here on
            took_s = [_took_s(partial(engine.run, request)) for _ in range(3)]
            steps = len(engine.run(request).retrieved)
            times.append(median(took_s) / steps)
    return _us(times)


def _took_s(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _us(seconds: Iterable[float]) -> float:
    """Give the median in microseconds."""
    return 1e6 * median(seconds)
