"""Keys, tenants, limits and hosts: who may ask, for whom, and how much."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ralmspec_plugins import AsyncEngine
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.serving import ApiKeys, Limits, PerTenant, create_app
from ralmspec_plugins.serving.keys import Caller
from ralmspec_plugins.testing import WordRetriever
from tests.serving.parts import (
    ADMIN_KEY,
    CHAT,
    USER_KEY,
    AsyncPoem,
    app_of,
    bearer,
    body,
    client_of,
    keys,
    poems,
    right,
)

TENANT = "X-RalmSpec-Tenant"
TEXT_OF = {"ann": "whale of ann", "bob": "whale of bob"}


def of_tenants(**settings: Any) -> Any:
    """Serve a knowledge base for each of two tenants."""
    return create_app({"poems": PerTenant(_store_of, TEXT_OF)}, **settings)


def _store_of(tenant: str) -> AsyncEngine:
    return poems(store=WordRetriever([TEXT_OF[tenant]]))


def text_in(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-key-012345678"},
        {"Authorization": f"Basic {USER_KEY}"},
        {"Authorization": USER_KEY},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {USER_KEY}x"},
        {"Authorization": "Bearer \u00e9\u00e9\u00e9\u00e9"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nowhere", "/v1/models/poems"])
async def test_without_a_key_nothing_is_told(headers: dict[str, str], path: str) -> None:
    """Not even which paths there are."""
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    async with client_of(app_of(keys=keys())) as client:
        response = await client.get(path, headers=encoded)

    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


async def test_the_body_of_an_unknown_client_is_not_read() -> None:
    """It may be as long as it likes."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 1000

    async with client_of(app_of(keys=keys())) as client:
        response = await client.post(CHAT, content=endless())

    assert response.status_code == 401
    assert read == 0


async def test_two_keys_are_no_key() -> None:
    """Which one counts would be a guess."""
    twice = [("Authorization", f"Bearer {USER_KEY}"), ("Authorization", f"Bearer {ADMIN_KEY}")]
    async with client_of(app_of(keys=keys())) as client:
        response = await client.get("/v1/models", headers=twice)

    assert response.status_code == 401


async def test_health_needs_no_key_and_metrics_an_administrators() -> None:
    """Load balancers ask for the one, Prometheus has the other."""
    async with client_of(app_of(keys=keys())) as client:
        health = await client.get("/healthz")
        of_user = await client.get("/metrics", headers=bearer(USER_KEY))
        of_admin = await client.get("/metrics", headers=bearer(ADMIN_KEY))

    assert health.json() == {"status": "ok"}
    assert (of_user.status_code, of_admin.status_code) == (403, 200)
    assert "ralmspec_running 0.0" in of_admin.text


async def test_each_tenant_has_its_own_store() -> None:
    """Named by the header, or the first of the key's."""
    async with client_of(of_tenants(keys=keys("ann", "bob"))) as client:
        first = await client.post(CHAT, json=body("whale"), headers=bearer(USER_KEY))
        ann = {**bearer(USER_KEY), TENANT: "ann"}
        bob = {**bearer(USER_KEY), TENANT: "bob"}
        named = [await client.post(CHAT, json=body("whale"), headers=one) for one in (ann, bob)]

    assert text_in(first).startswith("whale of ann ")
    assert text_in(named[0]) == text_in(first)
    assert text_in(named[1]).startswith("whale of bob ")


@pytest.mark.parametrize("tenant", ["bob", "nobody", "ANN", ""])
async def test_a_key_asks_for_its_own_tenants_alone(tenant: str) -> None:
    """Whether another tenant exists cannot be told from the answer."""
    async with client_of(of_tenants(keys=keys("ann"))) as client:
        headers = {**bearer(USER_KEY), TENANT: tenant}
        response = await client.post(CHAT, json=body("whale"), headers=headers)

    if tenant:
        assert response.status_code == 403
        assert response.json()["error"]["message"] == "this key may not ask for this tenant"
    else:
        assert text_in(response).startswith("whale of ann ")


async def test_a_key_without_tenants_has_none() -> None:
    """It is told to name one, and may name none."""
    async with client_of(of_tenants(keys=keys())) as client:
        none = await client.post(CHAT, json=body("whale"), headers=bearer(USER_KEY))
        headers = {**bearer(USER_KEY), TENANT: "ann"}
        one = await client.post(CHAT, json=body("whale"), headers=headers)

    assert (none.status_code, one.status_code) == (400, 403)


async def test_a_tenant_must_be_named_once_and_to_whom_it_matters() -> None:
    """A header that would have no effect is refused."""
    async with client_of(of_tenants()) as tenants, client_of(app_of()) as same:
        none = await tenants.post(CHAT, json=body("whale"))
        twice = await tenants.post(
            CHAT, json=body("whale"), headers=[(TENANT, "ann"), (TENANT, "bob")]
        )
        for_all = await same.post(CHAT, json=body("whale"), headers={TENANT: "ann"})

    assert [one.status_code for one in (none, twice, for_all)] == [400, 400, 400]


async def test_tenants_never_meet_under_load() -> None:
    """Whatever is asked at the same time, each tenant's answers are its own."""
    async with client_of(of_tenants()) as client:
        asked = [
            client.post(CHAT, json=body("whale whale whale"), headers={TENANT: tenant})
            for tenant in ("ann", "bob") * 20
        ]
        answers = [text_in(response) for response in await asyncio.gather(*asked)]

    assert len(set(answers)) == 2
    for tenant, answer in zip(("ann", "bob") * 20, answers, strict=True):
        assert answer.count(f"whale of {tenant} ") == 3


async def test_a_tenants_pipeline_is_made_once_and_again_if_that_failed() -> None:
    """Requests that come while it is made wait for it."""
    made: list[str] = []

    def make(tenant: str) -> AsyncEngine:
        made.append(tenant)
        if len(made) == 1:
            raise ConfigError("the disk is not there yet")
        return _store_of(tenant)

    async with client_of(create_app({"poems": PerTenant(make, ["ann"])})) as client:
        failed = await client.post(CHAT, json=body("whale"), headers={TENANT: "ann"})
        asked = [client.post(CHAT, json=body("whale"), headers={TENANT: "ann"}) for _ in range(9)]
        answers = [text_in(response) for response in await asyncio.gather(*asked)]

    assert failed.status_code == 500
    assert "disk" not in failed.text
    assert made == ["ann", "ann"]
    assert len(set(answers)) == 1


@pytest.mark.parametrize("tenants", [[], [""], "", [1]])
def test_tenants_must_have_names(tenants: Any) -> None:
    """There is at least one."""
    with pytest.raises(ConfigError):
        PerTenant(_store_of, tenants)


async def test_invalidation_needs_an_administrator() -> None:
    """And makes later requests search again."""
    store = WordRetriever(["whale one"])
    engine = poems(store=store)
    app = create_app({"poems": engine}, keys=keys())
    asked = {"model": "poems"}
    path = "/v1/ralmspec/invalidate"
    calls: list[bool] = []
    engine.invalidate = lambda: calls.append(True)  # type: ignore[method-assign]
    async with client_of(app) as client:
        of_nobody = await client.post(path, json=asked)
        of_user = await client.post(path, json=asked, headers=bearer(USER_KEY))
        assert not calls
        of_admin = await client.post(path, json=asked, headers=bearer(ADMIN_KEY))
        unknown = await client.post(path, json={"model": "x"}, headers=bearer(ADMIN_KEY))

    statuses = [one.status_code for one in (of_nobody, of_user, of_admin, unknown)]
    assert statuses == [401, 403, 200, 404]
    assert calls == [True]


async def test_without_keys_nobody_may_invalidate() -> None:
    """Anyone could make all others slow."""
    async with client_of(app_of()) as client:
        response = await client.post("/v1/ralmspec/invalidate", json={"model": "poems"})

    assert response.status_code == 403


async def test_a_body_is_bounded_however_it_is_declared() -> None:
    """By its length, and where it has none by what comes."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 100

    async with client_of(app_of(limits=Limits(max_body_bytes=1000))) as client:
        declared = await client.post(CHAT, content=b" " * 1001)
        undeclared = await client.post(CHAT, content=endless())
        fits = await client.post(CHAT, json=body())

    assert declared.status_code == undeclared.status_code == 413
    assert sent <= 12
    assert text_in(fits) == right("whale fox").text


async def test_headers_are_bounded() -> None:
    """With the path and the query."""
    async with client_of(app_of(limits=Limits(max_header_bytes=1000))) as client:
        responses = [
            await client.get("/v1/models", headers={"X-Long": "x" * 1000}),
            await client.get("/v1/models?" + "x" * 1000),
            await client.get("/v1/models/" + "x" * 1000),
        ]
        fits = await client.get("/v1/models")

    assert [one.status_code for one in responses] == [431] * 3
    assert fits.status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """A client that sends a byte now and then holds no request."""

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with client_of(app_of(limits=Limits(body_timeout_s=0.05))) as client:
        response = await client.post(CHAT, content=never())

    assert response.status_code == 408


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
async def test_a_page_cannot_call_this_server_by_a_name_of_its_own(host: str, status: int) -> None:
    """Its name would resolve to this machine, and the browser would let it read the answer."""
    hosts = ("localhost", "127.0.0.1", "[::1]")
    async with client_of(app_of(hosts=hosts)) as client:
        response = await client.get("/v1/models", headers={"Host": host})

    assert response.status_code == status


async def test_a_full_queue_refuses_and_recovers() -> None:
    """429 with Retry-After at once; those that were taken on are answered."""
    going, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(_: str) -> None:
        entered.release()
        await going.wait()

    limits = Limits(running=2, waiting=3, retry_after_s=7)
    async with client_of(app_of(AsyncPoem(wait), limits=limits)) as client:
        running = [asyncio.create_task(client.post(CHAT, json=body("fox"))) for _ in range(2)]
        for _ in running:
            await entered.acquire()
        waiting = [asyncio.create_task(client.post(CHAT, json=body("fox"))) for _ in range(3)]
        while (await client.get("/metrics")).text.count("ralmspec_waiting 3.0") == 0:
            await asyncio.sleep(0)
        refused = await client.post(CHAT, json=body("fox"))
        waiting[0].cancel()
        while (await client.get("/metrics")).text.count("ralmspec_waiting 2.0") == 0:
            await asyncio.sleep(0)
        again = asyncio.create_task(client.post(CHAT, json=body("fox")))
        await asyncio.sleep(0)
        going.set()
        answers = await asyncio.gather(*running, *waiting[1:], again)

    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "7"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert [text_in(answer) for answer in answers] == [right("fox").text] * 5


async def test_one_tenant_does_not_fill_the_queue() -> None:
    """It has its own limit."""
    going = asyncio.Event()

    async def wait(_: str) -> None:
        await going.wait()

    def make(tenant: str) -> AsyncEngine:
        return poems(AsyncPoem(wait))

    app = create_app({"poems": PerTenant(make, TEXT_OF)}, limits=Limits(per_tenant=2))
    async with client_of(app) as client:

        def ask(tenant: str) -> asyncio.Task[httpx.Response]:
            post = client.post(CHAT, json=body("fox"), headers={TENANT: tenant})
            return asyncio.create_task(post)

        of_ann = [ask("ann") for _ in range(3)]
        refused, pending = await asyncio.wait(of_ann, return_when=asyncio.FIRST_COMPLETED)
        of_bob = ask("bob")
        going.set()
        answers = await asyncio.gather(*pending, of_bob)

    assert [task.result().status_code for task in refused] == [429]
    assert [answer.status_code for answer in answers] == [200] * 3


@pytest.mark.parametrize(
    "settings",
    [
        {"running": 0},
        {"waiting": -1},
        {"max_tokens": True},
        {"max_body_bytes": 1.5},
        {"deadline_s": 0.0},
        {"per_tenant": 0},
        {"retry_after_s": "1"},
    ],
)
def test_limits_are_checked(settings: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Limits(**settings)


def test_a_file_of_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Keys or their digests, tenants and administrators; others must not read it."""
    digest = hashlib.sha256(ADMIN_KEY.encode()).hexdigest()
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[keys]]\nname = "user"\nkey = "{USER_KEY}"\ntenants = ["ann", "bob"]\n'
        f'[[keys]]\nname = "admin"\nsha256 = "{digest}"\nadmin = true\n'
    )
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read = ApiKeys.read(path)

    assert read.caller(USER_KEY) == Caller("user", ("ann", "bob"), admin=False)
    assert read.caller(ADMIN_KEY) == Caller("admin", (), admin=True)
    assert read.caller(digest) is None
    assert read.caller("") is None
    assert repr(read) == "<ApiKeys: 2>"
    assert "chmod 600" in caplog.text
    assert USER_KEY not in caplog.text


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o620, 0o602])
def test_others_may_neither_read_nor_change_a_file_of_keys(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who can change it can give a key of their own the rights of an administrator."""
    path = tmp_path / "keys.toml"
    path.write_text(f'[[keys]]\nname = "user"\nkey = "{USER_KEY}"\n')
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        ApiKeys.read(path)

    assert ("chmod 600" in caplog.text) == (mode != 0o600)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "keys = 3",
        "keys = [3]",
        "[[keys]]\n",
        f'[[keys]]\nkey = "{USER_KEY}"',
        '[[keys]]\nname = "a"',
        '[[keys]]\nname = "a"\nkey = "short"',
        '[[keys]]\nname = "a"\nsha256 = "xyz"',
        f'[[keys]]\nname = "a"\nkey = "{USER_KEY}"\nsha256 = "{"0" * 64}"',
        f'[[keys]]\nname = "a"\nkey = "{USER_KEY}"\nrole = "x"',
        f'[[keys]]\nname = "a"\nkey = "{USER_KEY}"\ntenants = "ann"',
        f'[[keys]]\nname = "a"\nkey = "{USER_KEY}"\nadmin = 1',
        f'[[keys]]\nname = "a"\nkey = "{USER_KEY}"\n[[keys]]\nname = "b"\nkey = "{USER_KEY}"',
        f'[[keys]]\nname = "a"\nkey = "{USER_KEY}"\n[[keys]]\nname = "a"\nkey = "{ADMIN_KEY}"',
        f'other = 1\n[[keys]]\nname = "a"\nkey = "{USER_KEY}"',
        f'[[keys]\nname = "a"\nkey = "{USER_KEY}"',
    ],
)
def test_a_wrong_file_of_keys_is_refused(text: str, tmp_path: Path) -> None:
    """The message, and what caused it, have no key in them."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        ApiKeys.read(path)

    told = [str(raised.value), str(raised.value.__cause__)]
    if not raised.value.__suppress_context__:
        told.append(str(raised.value.__context__))
    assert not any(key in one for key in (USER_KEY, ADMIN_KEY) for one in told)


async def test_secrets_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Not the key, nor the question, nor the answer, whatever goes wrong."""
    asked = ["whale", "poison", "fox poison"]
    with caplog.at_level(logging.DEBUG):
        async with client_of(app_of(keys=keys()), headers=bearer(USER_KEY)) as client:
            for prompt in asked:
                await client.post(CHAT, json=body(f"{prompt} hush-hush", stream=True))
            await client.post(CHAT, content=f'{{"model": "{USER_KEY}"')
            await client.post(CHAT, json=body(model=USER_KEY))
            await client.get("/nowhere", headers=bearer(USER_KEY))
            await client.get("/v1/models", headers=bearer(f"{USER_KEY}x"))
            text = (await client.get("/metrics", headers=bearer(ADMIN_KEY))).text

    ours = [one for one in caplog.records if not one.name.startswith(("httpx", "httpcore"))]
    logged = "\n".join([caplog.handler.format(one) for one in ours])
    for secret in (USER_KEY, ADMIN_KEY, "hush-hush"):
        assert secret not in logged
        assert secret not in text
    assert "failed" in logged  # what went wrong is there


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_page_of_another_origin_cannot_send_a_request(kind: str | None) -> None:
    """What a browser sends without asking first is not read as JSON."""
    workload = AsyncPoem()
    content = json.dumps(body()).encode()
    headers = {} if kind is None else {"Content-Type": kind}
    async with client_of(app_of(workload)) as client:
        response = await client.post(CHAT, content=content, headers=headers)
        asked_first = await client.options(CHAT, headers={"Origin": "http://evil.example"})

    assert response.status_code == 400
    assert workload.written == []
    assert asked_first.status_code == 405
    assert "access-control-allow-origin" not in asked_first.headers
