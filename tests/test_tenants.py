"""Tenants over shared parts: nothing of the one ever reaches the other.

Two tenants hold different passages in one store. Each passage carries a canary,
its owner's name. Everything that can be shared is: pool, memo, verifier, lanes.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ralmspec_plugins import (
    Answer,
    AsyncEngine,
    Continuous,
    Engine,
    QueryCache,
    Request,
    Settings,
    SharedPassageCache,
    Verifier,
    plain,
)
from ralmspec_plugins.effects import Notice
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress, Retriever
from ralmspec_plugins.retrieval import HashingEncoder, open_retriever
from ralmspec_plugins.speculators.cascade import GuessedHits, SpeculatorCascade
from ralmspec_plugins.testing import EchoWorkload, Lines
from ralmspec_plugins.types import Hit, Hits, Passage, Query

TENANTS = ("canary-ada", "canary-bob")
WORDS = [f"topic{number}" for number in range(12)]
PROMPTS = [" ".join(WORDS[(start + step) % 12] for step in range(8)) for start in range(6)]


def passages(tenant: str) -> list[Passage]:
    """Give a tenant's passages: the same ids and topics as the other's, another text."""
    return [Passage(f"p{number}", f"{word} of {tenant}") for number, word in enumerate(WORDS)]


class Watched(EchoWorkload):
    """Notes every passage that a prompt was given, also where it was thrown away again."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        self.prompts += [hit.passage.text for hit in hits]
        return super().extend(state, hits, progress)


class Tenant:
    """One tenant's retriever and workload, and all that was shown to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.retriever = open_retriever("numpy-flat", passages(name), HashingEncoder(dimension=64))
        self.workload = Watched()
        self.guessed: list[str] = []
        self.events: list[Any] = []

    def foreign(self, answers: Sequence[Answer]) -> list[str]:
        """List whatever of another tenant's was seen anywhere."""
        other = next(name for name in TENANTS if name != self.name)
        seen = [*self.workload.prompts, *self.guessed, *map(repr, self.events)]
        for answer in answers:
            seen += [answer.text, repr(answer.retrieved), repr(answer.stats)]
        return [text for text in seen if other in text]


Run = Callable[[dict[str, Tenant], dict[str, Retriever], Settings], dict[str, list[Answer]]]


def in_threads(
    tenants: dict[str, Tenant], retrievers: dict[str, Retriever], settings: Settings
) -> dict[str, list[Answer]]:
    answers: dict[str, list[Answer]] = {}

    def serve(name: str) -> None:
        with Engine(tenants[name].workload, retrievers[name], settings) as engine:
            answers[name] = engine.batch(PROMPTS * 2)

    threads = [threading.Thread(target=serve, args=(name,)) for name in TENANTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def in_tasks(
    tenants: dict[str, Tenant], retrievers: dict[str, Retriever], settings: Settings
) -> dict[str, list[Answer]]:
    async def serve(name: str) -> list[Answer]:
        async with AsyncEngine(tenants[name].workload, retrievers[name], settings) as engine:
            return await engine.batch(PROMPTS * 2)

    async def main() -> list[list[Answer]]:
        return await asyncio.gather(*map(serve, TENANTS))

    return dict(zip(TENANTS, asyncio.run(main()), strict=True))


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Tenant]:
    """Note each guess and each event for the tenant whose signature it was made under."""
    tenants: dict[Any, Tenant] = {}
    guess, note = SpeculatorCascade.guess, RequestContext.note

    def watched_guess(
        self: SpeculatorCascade,
        places: Sequence[int],
        query: Query,
        previous: Hits | None = None,
    ) -> GuessedHits | None:
        made = guess(self, places, query, previous)
        tenants[self._signature].guessed += [
            hit.passage.text for hit in (made.hits if made else ())
        ]
        return made

    def watched_note(self: RequestContext, notice: Notice) -> None:
        tenants[self.session.retriever.signature].events.append(notice)
        note(self, notice)

    monkeypatch.setattr(SpeculatorCascade, "guess", watched_guess)
    monkeypatch.setattr(RequestContext, "note", watched_note)
    return tenants


@pytest.mark.parametrize("run", [in_threads, in_tasks])
def test_no_canary_crosses_between_tenants(run: Run, owners: dict[Any, Tenant]) -> None:
    """In no prompt, guess, event, answer or statistic is anything of the other tenant's."""
    tenants = {name: Tenant(name) for name in TENANTS}
    owners |= {tenant.retriever.signature: tenant for tenant in tenants.values()}
    first, second = TENANTS
    settings = Settings(schedule=Continuous(window=8), pool=SharedPassageCache(), memo=QueryCache())
    with Verifier(tenants[first].retriever) as verifier:
        retrievers: dict[str, Retriever] = {
            first: verifier,
            second: verifier.beside(tenants[second].retriever),
        }
        answers = run(tenants, retrievers, settings)

    for name, tenant in tenants.items():
        assert [] == tenant.foreign(answers[name])
        assert tenant.guessed, "nothing was guessed, so nothing was tried"
        assert tenant.events
        expected = [
            plain(EchoWorkload(), tenant.retriever, Request(prompt=prompt)).text
            for prompt in PROMPTS * 2
        ]
        assert expected == [answer.text for answer in answers[name]]
        assert all(name in line for answer in answers[name] for line in answer.text.split("\n"))


def test_the_watch_sees_a_canary_that_crosses(owners: dict[Any, Tenant]) -> None:
    """Were the pool one for all, the other tenant's passages would be seen in the guesses."""
    ada, bob = (Tenant(name) for name in TENANTS)
    owners |= {ada.retriever.signature: ada, bob.retriever.signature: bob}
    pool = SharedPassageCache()
    leaky = pool.of(ada.retriever)
    leaky.signature = bob.retriever.signature
    for query in map(ada.retriever.encode, WORDS):
        leaky.learn(query, ada.retriever.search([query])[0])
    with Engine(bob.workload, bob.retriever, Settings(speculators=(leaky,))) as engine:
        answers = [engine.run(prompt) for prompt in PROMPTS]

    assert bob.foreign(answers)
    assert all("canary-bob" in answer.text for answer in answers)  # wrong guesses, no wrong answer
    assert not any("canary-ada" in answer.text for answer in answers)


def test_parts_of_a_shared_pool_are_forgotten_in_turn() -> None:
    """Of more tenants than parts, the one that was away the longest starts anew."""
    ada, bob = (Tenant(name).retriever for name in TENANTS)
    pool = SharedPassageCache(parts=1)
    query = ada.encode(WORDS[0])
    pool.of(ada).learn(query, ada.search([query])[0])
    assert pool.of(ada).size == 1
    assert pool.of(bob).size == 0
    pool.check()

    assert pool.of(ada).size == 0


def test_an_invalidated_pool_knows_nothing() -> None:
    """After a change of the index everything is forgotten."""
    ada = Tenant(TENANTS[0]).retriever
    pool = SharedPassageCache()
    query = ada.encode(WORDS[0])
    pool.of(ada).learn(query, ada.search([query])[0])
    pool.invalidate()
    pool.check()

    assert pool.of(ada).size == 0


@pytest.mark.parametrize(
    "settings", [{"capacity": 0}, {"parts": 0}, {"eviction": "oldest"}], ids=str
)
def test_a_pool_without_room_is_refused(settings: dict[str, Any]) -> None:
    """Settings are checked where they are given."""
    with pytest.raises(ConfigError):
        SharedPassageCache(**settings)


class Turning:
    """Searches for whose turn it is, and says so by its signature."""

    k = 1
    who = TENANTS[0]

    @property
    def signature(self) -> str:
        return self.who

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return [(Hit(Passage(query.text, f"{self.who} {query.text}")),) for query in queries]


class Passing(Watched):
    """Passes the turn on in the middle of its request."""

    def __init__(self, retriever: Turning) -> None:
        super().__init__()
        self._retriever = retriever

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        if len(self.prompts) == 2:
            self._retriever.who = TENANTS[1]
        return super().extend(state, hits, progress)


class Learning:
    """Notes what it is given to learn."""

    inline = True

    def __init__(self) -> None:
        self.learned: list[str] = []

    def guess(self, query: Query) -> None:
        return None

    def learn(self, query: Query, hits: Hits) -> None:
        self.learned += [hit.passage.text for hit in hits]


@pytest.mark.parametrize("by_function", [False, True])
def test_what_was_found_in_anothers_name_is_not_learned(*, by_function: bool) -> None:
    """A function that makes speculators for each request may give the same ones each time."""
    retriever, speculator = Turning(), Learning()
    workload = Passing(retriever)
    made = (lambda: [speculator]) if by_function else [speculator]
    with Engine(workload, retriever, Settings(speculators=made)) as engine:
        engine.run(PROMPTS[0])

    assert TENANTS[1] in workload.prompts[-1], "nobody else had a turn"
    assert speculator.learned
    assert all(text.startswith(TENANTS[0]) for text in speculator.learned)
