"""Tenants who share caches, lanes and a model: no prompt of the one has anything of another's.

Also no prompt of a call that is dropped: every prompt that the model is given is recorded. Each
tenant's passages have the same ids and words as the others', besides the tenant's own name, and
each question has the name of who asks it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest

pytest.importorskip("fastapi")

from ralmspec_plugins import (
    AsyncEngine,
    FixedStride,
    QueryCache,
    Request,
    Settings,
    SharedPassageCache,
    Verifier,
    plain,
)
from ralmspec_plugins.protocols import Progress, Retriever
from ralmspec_plugins.serving import PerTenant, create_app
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hits, Query
from ralmspec_plugins.workloads import TextState
from tests.serving.parts import CHAT, AsyncPoem, Poem, body, client_of, read_stream

HEADER: Final = "X-RalmSpec-Tenant"
TENANTS: Final = ("canary-ann", "canary-bob", "canary-eve")
TOPICS: Final = [f"topic{number}" for number in range(8)]
QUESTIONS: Final = [
    " ".join(TOPICS[(start + step * step) % len(TOPICS)] for step in range(5)) for start in range(8)
]


def store_of(tenant: str) -> WordRetriever:
    return WordRetriever([f"{topic} of {tenant}" for topic in TOPICS])


class Recorded(AsyncPoem):
    """Records what it is given, before anything else, and takes its time."""

    def __init__(self, record: Callable[[str], None]) -> None:
        super().__init__()
        self._record = record

    async def aextend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        passages = [hit.passage.text for hit in hits]
        self._record(f"{state.request.prompt} {state.text} {passages}".replace("\n", " "))
        await asyncio.sleep(0.002)
        return await super().aextend(state, hits, progress)


class Far(WordRetriever):
    """Takes longer than the model."""

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        await asyncio.sleep(0.01)
        return self.search(queries)

    async def asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        await asyncio.sleep(0.01)
        return self.search_wide(queries, width)


@dataclass
class Shared:
    """What all tenants' engines have in common."""

    prompts: list[str] = field(default_factory=list)
    pool: SharedPassageCache = field(default_factory=SharedPassageCache)
    memo: QueryCache = field(default_factory=QueryCache)

    def engine(self, store: Any) -> AsyncEngine:
        return AsyncEngine(
            Recorded(self.prompts.append),
            store,
            Settings(
                pool=self.pool,
                memo=self.memo,
                prefetch=1,  # so that some guesses are wrong
                schedule=FixedStride(stride=3),
            ),
        )


def check_prompts(prompts: Sequence[str]) -> None:
    """Check that each prompt has the words of one tenant."""
    assert prompts
    mixed = [one for one in prompts if sum(name in one for name in TENANTS) != 1]
    assert mixed == []


def right(tenant: str, question: str) -> str:
    """Return the answer that the tenant's own store gives, without a server."""
    return plain(Poem(), store_of(tenant), Request(prompt=f"{tenant} {question}")).text


async def asked(
    post: Callable[..., Awaitable[httpx.Response]], path: str, model: str
) -> list[tuple[str, str]]:
    """Ask all questions for all tenants at once; return each answer with the right one."""

    async def ask(tenant: str, question: str) -> tuple[str, str]:
        response = await post(
            path,
            json=body(f"{tenant} {question}", model, stream=True),
            headers={HEADER: tenant},
        )
        return right(tenant, question), read_stream(response.text).text

    pairs = [(tenant, question) for question in QUESTIONS * 2 for tenant in TENANTS]
    return await asyncio.gather(*(ask(*one) for one in pairs))


def counts_in(metrics: str, model: str) -> dict[str, float]:
    """Return the counts of a model's guesses, and of its dropped work."""
    counts = {}
    for kind in ("guesses", "accepted", "wasted_segments"):
        name = f'ralmspec_work_total{{kind="{kind}",model="{model}"}} '
        counts[kind] = float(metrics.partition(name)[2].partition("\n")[0])
    return counts


def check(shared: Shared, answers: list[tuple[str, str]], counts: dict[str, float]) -> None:
    """Check answers and prompts, and that both kinds of guesses were tried."""
    assert [expected for expected, _ in answers] == [actual for _, actual in answers]
    check_prompts(shared.prompts)
    assert counts["accepted"] > 0, "no guess was used"
    assert counts["wasted_segments"] > 0, "no call was dropped"


async def test_no_prompt_has_anything_of_another_tenant() -> None:
    """Over one pool of passages, one query cache and one verifier's lanes."""
    shared = Shared()
    stores = {name: Far([one.text for one in store_of(name).passages]) for name in TENANTS}
    with Verifier(stores[TENANTS[0]], lanes=2) as lanes:
        beside = {name: lanes.beside(one) for name, one in stores.items()}
        pipeline = PerTenant(lambda name: shared.engine(beside[name]), TENANTS)
        async with client_of(create_app({"poems": pipeline})) as client:
            answers = await asked(client.post, CHAT, "poems")
            counts = counts_in((await client.get("/metrics")).text, "poems")

    check(shared, answers, counts)
    for name in TENANTS:
        check_known(shared.memo, stores[name].signature, name)


def check_known(memo: QueryCache, signature: Any, tenant: str) -> None:
    """Check that the query cache has the tenant's own passages under the tenant's signature."""
    found = [memo.known(signature, Query(topic)) for topic in TOPICS]
    texts = [hit.passage.text for hits in found for hit in hits or ()]

    assert texts
    assert all(text.endswith(tenant) for text in texts)


# On a cluster, whose replicas are played here.


class Replica:
    """Stands for the handle of `Retrieval`: each call goes to the store of its key."""

    def __init__(self, stores: dict[str, Far]) -> None:
        self.stores = stores
        self.search = self
        self.encode = self

    def options(self, **_: Any) -> "Replica":
        return self

    async def remote(self, key: str, asked: Any, *_: Any) -> Any:
        if isinstance(asked, str):
            return Query(asked)
        return await self.stores[key].asearch(asked)


@pytest.fixture
def cluster() -> Any:
    """The module of the cluster."""
    pytest.importorskip("ray")
    from ralmspec_plugins.serving import ray

    return ray


async def test_no_prompt_on_a_cluster_has_anything_of_another_tenant(cluster: Any) -> None:
    """The engines of one replica share a pool and a query cache; the indexes are elsewhere."""
    shared = Shared()
    keys = {name: cluster._key("poems", name) for name in TENANTS}
    replica = Replica(
        {keys[name]: Far([one.text for one in store_of(name).passages]) for name in TENANTS}
    )
    about = cluster._About(k=1, wide=False, pure=True)

    def make(name: str) -> AsyncEngine:
        remote: Retriever = cluster.RemoteRetriever(replica, keys[name], about)
        return shared.engine(remote)

    async with client_of(create_app({"poems": PerTenant(make, TENANTS)})) as client:
        answers = await asked(client.post, CHAT, "poems")
        counts = counts_in((await client.get("/metrics")).text, "poems")

    check(shared, answers, counts)
    for name in TENANTS:
        check_known(shared.memo, ("cluster", keys[name]), name)
