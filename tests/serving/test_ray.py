"""A local Ray cluster of two processors: the same answers, whatever stops, scales or leaves.

Its parts reach the replicas by value, since these do not have the tests' folder on their path.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray")
pytest.importorskip("fastapi")

from ralmspec_plugins import (
    AsyncEngine,
    FixedStride,
    QueryCache,
    Settings,
    SharedPassageCache,
)
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.serving import Limits
from ralmspec_plugins.testing import WordRetriever
from tests.serving import parts
from tests.serving import test_tenants as canaries
from tests.serving.parts import (
    ADMIN_KEY,
    USER_KEY,
    AsyncPoem,
    bearer,
    body,
    keys,
    read_stream,
    retriever,
    right,
)
from tests.serving.test_connections import connect, leave
from tests.serving.test_tenants import Recorded

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
PROMPT = "whale fox swan whale parrot fox oak"
TENANTS = {"ann": "whale of ann", "bob": "whale of bob"}
JOURNAL = Path(tempfile.gettempdir()) / f"ralmspec-ray-{os.getpid()}.txt"  # what replicas write


def noted(line: str) -> None:
    with JOURNAL.open("a") as file:
        file.write(f"{line}\n")


def lines() -> list[str]:
    return JOURNAL.read_text().splitlines() if JOURNAL.exists() else []


async def until_noted(line: str) -> None:
    async with asyncio.timeout(300):
        while line not in lines():
            await asyncio.sleep(0.05)


async def slowly(passage: str) -> None:
    """Take a while for each line, so that something can happen in the middle."""
    noted(f"begin {passage}")
    await asyncio.sleep(0.5)


async def stuck(passage: str) -> None:
    """Never write a second line, unless this is cancelled."""
    if passage == "old oak":
        noted("stuck")
        try:
            await asyncio.Event().wait()
        finally:
            noted("stopped")


def store_of(tenant: str) -> Retriever:
    return WordRetriever([TENANTS[tenant]]) if tenant else retriever()


def engine_of(store: Retriever) -> AsyncEngine:
    return AsyncEngine(AsyncPoem(), store, Settings(pool=SharedPassageCache()))


def slow_engine_of(store: Retriever) -> AsyncEngine:
    return AsyncEngine(AsyncPoem(slowly), store, Settings(speculate=False))


def stuck_engine_of(store: Retriever) -> AsyncEngine:
    return AsyncEngine(AsyncPoem(stuck), store, Settings(speculate=False))


def of_all(name: str, make: Any) -> Any:
    """Return what all engines in a replica's process share."""
    shared: dict[str, Any] = vars(sys).setdefault("ralmspec_shared", {})
    return shared.setdefault(name, make())


def shared_engine_of(store: Retriever) -> AsyncEngine:
    """Answer with one pool and one query cache for all tenants; every prompt is noted."""
    settings = Settings(
        pool=of_all("pool", SharedPassageCache),
        memo=of_all("memo", QueryCache),
        prefetch=1,
        schedule=FixedStride(stride=3),
    )
    return AsyncEngine(Recorded(lambda prompt: noted(f"prompt {prompt}")), store, settings)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The application on a cluster, with quick autoscaling."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="120",
        RAY_worker_niceness="0",
    )
    import ray
    from ray import cloudpickle, serve

    from ralmspec_plugins.serving.ray import ClusterModel, application

    for module in (parts, canaries, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    models = {
        "poems": ClusterModel(retriever=store_of, engine=engine_of),
        "slow": ClusterModel(retriever=store_of, engine=slow_engine_of),
        "stuck": ClusterModel(retriever=store_of, engine=stuck_engine_of),
        "tenants": ClusterModel(retriever=store_of, engine=engine_of, tenants=frozenset(TENANTS)),
        "shared": ClusterModel(
            retriever=canaries.store_of,
            engine=shared_engine_of,
            tenants=frozenset(canaries.TENANTS),
        ),
    }
    quick = {"upscale_delay_s": 1, "downscale_delay_s": 2, "target_ongoing_requests": 4}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
    )
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        made = application(
            models,
            keys=keys(*TENANTS, *canaries.TENANTS),
            limits=Limits(waiting=1000),
            engines={
                "autoscaling_config": {"min_replicas": 1, "max_replicas": 3, **quick},
                "ray_actor_options": {"num_cpus": 0.2},
            },
            retrieval={"ray_actor_options": {"num_cpus": 0.2}, "num_replicas": 2},
        )
        serve.run(made, route_prefix="/")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        ray.shutdown()  # of the cluster that was started here: Serve ends with it
        JOURNAL.unlink(missing_ok=True)


async def ask(url: str, prompt: str, model: str = "poems", **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", bearer(USER_KEY))
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        return await client.post(
            f"{url}/chat/completions", json=body(prompt, model, **fields), headers=headers
        )


def text_in(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def replicas(kind: str) -> list[str]:
    """Name the actors of a deployment's replicas."""
    import ray

    found = ray.util.list_named_actors(all_namespaces=True)
    return [one["name"] for one in found if f"#{kind}#" in one["name"]]


def kill(kind: str) -> None:
    """Kill all replicas of a deployment, as a machine that fails does."""
    import ray

    for name in replicas(kind):
        ray.kill(ray.get_actor(name, namespace="serve"))


async def test_answers_are_those_of_one_process(url: str) -> None:
    """Whole and in a stream, with sources and scores; errors too."""
    expected = right(PROMPT)
    whole = await ask(url, PROMPT, x_ralmspec={"sources": True})
    stream = read_stream((await ask(url, PROMPT, stream=True)).text)
    poison = await ask(url, "fox poison")
    wrong = await ask(url, PROMPT, temperature=1)
    unknown = await ask(url, PROMPT, headers=bearer("wrong-key-0123456789"))

    assert expected.text
    assert expected.text == text_in(whole) == stream.text
    assert stream.done
    assert len(stream.chunks) > 3
    sources = whole.json()["x_ralmspec"]["sources"]
    assert [(hit.passage.id, hit.score) for hit in expected.sources] == [
        (one["id"], one["score"]) for one in sources
    ]
    assert poison.status_code == 500
    assert "secret" not in poison.text
    assert (wrong.status_code, unknown.status_code) == (400, 401)


async def test_tenants_never_meet(url: str) -> None:
    """Whatever replica answers: their searches and caches are their own."""
    tenants = ("ann", "bob") * 15
    asked = [
        ask(
            url,
            "whale whale whale",
            "tenants",
            headers={**bearer(USER_KEY), "X-RalmSpec-Tenant": tenant},
        )
        for tenant in tenants
    ]
    answers = [text_in(response) for response in await asyncio.gather(*asked)]

    for tenant, answer in zip(tenants, answers, strict=True):
        assert answer.count(f"whale of {tenant} ") == 3
    assert len(set(answers)) == 2


async def test_no_prompt_has_anything_of_another_tenant(url: str) -> None:
    """Though the engines of a replica share caches; also no prompt of a dropped call."""
    limits = httpx.Limits(max_connections=None)
    settings: dict[str, Any] = {"timeout": 300, "trust_env": False, "limits": limits}
    async with httpx.AsyncClient(**settings, headers=bearer(USER_KEY)) as client:
        answers = await canaries.asked(client.post, f"{url}/chat/completions", "shared")
        text = (
            await client.get(f"{url.removesuffix('/v1')}/metrics", headers=bearer(ADMIN_KEY))
        ).text
    prompts = [line.removeprefix("prompt ") for line in lines() if line.startswith("prompt ")]

    assert [expected for expected, _ in answers] == [actual for _, actual in answers]
    canaries.check_prompts(prompts)
    counts = canaries.counts_in(text, "shared")
    assert counts["accepted"] > 0, "no guess was used"
    assert counts["wasted_segments"] > 0, "no call was dropped"


async def test_a_client_that_leaves_stops_its_work(url: str) -> None:
    """Through proxy, ingress and handle, down to the call of the model."""
    asked = body("fox oak", "stuck", stream=True)
    reader, writer = await connect(url, asked, bearer(USER_KEY))
    await reader.readuntil(b"red fox")
    await until_noted("stuck")
    assert "stopped" not in lines()
    await leave(writer)
    await until_noted("stopped")
    answered = await ask(url, "swan", "stuck")

    assert text_in(answered) == right("swan").text


async def test_a_replica_that_is_killed_spoils_no_answer(url: str) -> None:
    """Clients get a right answer, or an error in the envelope; then all is well again."""
    prompts = [f"{PROMPT} {word}" for word in ("fox", "oak", "swan", "stone") * 3]
    asked = [asyncio.create_task(ask(url, one, "slow", stream=True)) for one in prompts]
    before = len(lines())
    async with asyncio.timeout(300):
        while len(lines()) < before + 24:  # all are in the middle
            await asyncio.sleep(0.05)
    kill("Engines")
    outcomes = [(await task).text for task in asked]
    errors = 0
    for prompt, text in zip(prompts, outcomes, strict=True):
        if text.endswith("data: [DONE]\n\n"):
            assert right(prompt).text == read_stream(text).text
            continue
        errors += 1
        *events, last = text.strip().split("\n\n")
        assert "error" in json.loads(last.removeprefix("data: ")), text
        settled = read_stream("".join(f"{one}\n\n" for one in events)).text
        assert right(prompt).text.startswith(settled)
    again = await asyncio.gather(*(ask(url, one, stream=True) for one in prompts))

    assert errors
    assert [right(one).text for one in prompts] == [read_stream(one.text).text for one in again]


async def test_searches_are_made_again_where_an_index_is_lost(url: str) -> None:
    """A search has no side effects: the answers are right, though its replica was killed."""
    prompts = [f"{PROMPT} {word}" for word in ("fox", "oak", "swan", "stone")]
    asked = [asyncio.create_task(ask(url, one, "slow")) for one in prompts]
    await asyncio.sleep(0.5)
    first, *_ = replicas("Retrieval")
    import ray

    ray.kill(ray.get_actor(first, namespace="serve"))
    answers = [text_in(await task) for task in asked]

    assert [right(one).text for one in prompts] == answers


async def test_scaling_loses_nothing(url: str) -> None:
    """Up under load, and down again while requests come."""
    words = ("fox", "whale", "parrot", "oak", "stone", "swan")
    prompts = [f"{words[n % 6]} {words[n // 6 % 6]} {words[n // 36 % 6]}" for n in range(60)]
    most = 0
    tasks = [asyncio.create_task(ask(url, one, "slow")) for one in prompts]
    while not all(task.done() for task in tasks):
        most = max(most, len(replicas("Engines")))
        await asyncio.sleep(0.2)
    answers = [text_in(task.result()) for task in tasks]
    async with asyncio.timeout(300):
        while len(replicas("Engines")) >= most:
            assert text_in(await ask(url, "oak")) == right("oak").text
            await asyncio.sleep(0.2)

    assert [right(one).text for one in prompts] == answers
    assert most > 1


async def test_invalidation_reaches_every_replica(url: str) -> None:
    """It needs an administrator, and the next answers are still right."""
    path = f"{url}/ralmspec/invalidate"
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        of_user = await client.post(path, json={"model": "poems"}, headers=bearer(USER_KEY))
        of_admin = await client.post(path, json={"model": "poems"}, headers=bearer(ADMIN_KEY))
    answered = await ask(url, PROMPT)

    assert (of_user.status_code, of_admin.status_code) == (403, 200)
    assert text_in(answered) == right(PROMPT).text


def test_what_cannot_be_served_is_refused_before_anything_starts() -> None:
    """As `create_app` refuses it."""
    from ralmspec_plugins.serving.ray import ClusterModel, application

    model = ClusterModel(retriever=store_of, engine=engine_of)
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"a": engine_of}, {}),
        ({"a": model}, {"ignore": ["seed"]}),
    ]
    for models, settings in wrong:
        with pytest.raises(ConfigError):
            application(models, **settings)
