"""How hosts' requests run ahead: defaults, what is merged, and engines kept apart."""

import pickle
from typing import Any

import pytest

from ralmspec_plugins import Request
from ralmspec_plugins.adapters.engines import (
    OwnPool,
    Runtime,
    Speculation,
    is_one_shot,
    most_tokens,
    workload_of,
)
from ralmspec_plugins.adapters.events import REPORT, report_of, stats_in
from ralmspec_plugins.adapters.local_model import split_template
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.scheduling.cost_model import MIN_ACCEPTANCE_RATE
from ralmspec_plugins.scheduling.schedules import Continuous, FixedStride
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.testing import EchoWorkload
from ralmspec_plugins.types import Passage
from ralmspec_plugins.workloads import Interval, OneShot, Sentences
from tests.adapters.number_store import NumberHost, NumberStore, searching


def test_single_calls_go_side_by_side() -> None:
    """A black box is asked with several at a time; a store that is looked into once, merged."""
    speculation = Speculation(side_by_side=5)
    box = speculation.schedule_for(looked_into=False)
    store = speculation.schedule_for(looked_into=True)

    assert isinstance(box, Continuous)
    assert isinstance(store, Continuous)
    assert (5, 1) == (box.lanes, store.lanes)
    assert speculation.merged_lanes(box, looked_into=False, pure=True) is None
    assert speculation.merged_lanes(store, looked_into=True, pure=False) is None
    assert 1 == speculation.merged_lanes(store, looked_into=True, pure=True)
    assert 3 == speculation.merged_lanes(Continuous(lanes=3), looked_into=True, pure=True)
    assert 1 == speculation.merged_lanes(FixedStride(), looked_into=True, pure=True)


def test_calls_that_cost_are_not_made_on_weak_guesses() -> None:
    """A model of one's own has nothing to lose; a given schedule is taken as it is."""
    paid, own = (Speculation(calls_cost=cost).schedule_for(looked_into=True) for cost in (1, 0))
    given = FixedStride(stride=2)

    assert isinstance(paid, Continuous)
    assert isinstance(own, Continuous)
    assert MIN_ACCEPTANCE_RATE == own.min_acceptance_rate < paid.min_acceptance_rate
    assert Speculation(schedule=given).schedule_for(looked_into=True) is given


@pytest.mark.parametrize(
    ("k", "prefetch", "expected"), [(4, None, None), (10, None, 80), (100, None, 200), (4, 7, 7)]
)
def test_no_more_is_brought_than_pays(k: int, prefetch: int | None, expected: Any) -> None:
    """Each passage is a Python object: twenty times k only where k is small."""
    host = searching(NumberStore([0.5], k))
    settings = Speculation(prefetch=prefetch).settings(host, Continuous())

    assert expected == settings.prefetch


def test_workloads_by_name() -> None:
    """By name or by what makes them; an unknown name lists the known ones."""
    lm: Any = object()
    kinds = [type(workload_of(name, lm)) for name in ("one_shot", "sentences", "interval")]

    assert [OneShot, Sentences, Interval] == kinds
    assert isinstance(workload_of(OneShot, lm), OneShot)
    assert [True, True, False] == [is_one_shot(one) for one in ("one_shot", OneShot, Interval)]
    assert 64 * 16 == most_tokens(Sentences(lm))
    assert 256 == most_tokens(Interval(lm))
    with pytest.raises(ConfigError, match="one_shot, sentences, interval"):
        workload_of("two_shots", lm)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hosts_own", "passing", "shared"),
    [(True, False, [True] * 2), (False, False, [False, True]), (True, True, [False] * 2)],
)
def test_who_shares_a_pool(hosts_own: bool, passing: bool, shared: list[bool]) -> None:
    """Over code of others only one that was given; in settings of one call's own, none."""
    host = searching(NumberStore([0.1, 0.5], k=1), hosts_own=hosts_own, passing=passing)
    given = []
    for pool in (OwnPool(), SharedPassageCache()):
        runtime, speculation = Runtime(), Speculation(pool=pool)
        engines = speculation.engines(runtime, "key", host, EchoWorkload())
        given.append(engines.sync._session.settings.pool is pool)
        again = speculation.engines(runtime, "key", host, EchoWorkload())

        assert (again is engines) is not passing
        assert again.sync._threads is engines.sync._threads
        assert "0.5" == again.sync.run("0.4").text.split()[-1]
        runtime.close()

    assert shared == given


def test_a_pool_of_its_own_travels_as_one() -> None:
    """Hosts copy the parts of a chain: a copy is empty, and still nobody's gift."""
    copied = pickle.loads(pickle.dumps(OwnPool()))

    assert isinstance(copied, OwnPool)


def test_engines_are_kept_by_all_that_they_depend_on() -> None:
    """One for each key and each signature; stores that are looked into get a line in front."""
    store = NumberStore([0.1, 0.5], k=1)
    host = searching(store)
    runtime, speculation = Runtime(), Speculation()

    def engines(key: str, host: Any) -> Any:
        return speculation.engines(runtime, key, host, EchoWorkload())

    first = engines("a", host)
    assert engines("a", host.beside(NumberHost(store, "ada"))) is first
    assert engines("b", host) is not first
    store.k = 2
    assert engines("a", host) is not first
    assert 1 == len(runtime.verifiers)
    box_engines = engines("c", searching(store, None))
    assert 1 == len(runtime.verifiers)

    store.k = 1
    answer = first.sync.run(Request(prompt="0.5 0.1"))
    assert "the number 0.5\nthe number 0.1" == answer.text == box_engines.sync.run("0.5 0.1").text
    assert 2 == len(store.singles)  # the black box's
    runtime.close()
    assert not runtime.verifiers


def test_a_report_is_plain_and_can_be_read_back() -> None:
    """What was asked and what it took; a reply without one is refused."""
    runtime = Runtime()
    engines = Speculation().engines(
        runtime, "a", searching(NumberStore([0.1, 0.5])), EchoWorkload()
    )
    answer = engines.sync.run(Request(prompt="0.5 0.1"))
    runtime.close()
    reply = {REPORT: report_of(answer)}

    assert ["0.5", "0.1"] == reply[REPORT]["queries"]
    assert answer.stats == stats_in(reply, "a reply")
    for wrong in (None, {}, {REPORT: {"stats": {}}}):
        with pytest.raises(InputError, match="a reply"):
            stats_in(wrong, "a reply")


@pytest.mark.parametrize("together", [False, True])
def test_a_prompt_is_split_where_the_passages_stand(together: bool) -> None:
    """Put together again it is the host's own prompt; one without the place is refused."""

    def prompt(request: Request, context: str) -> str:
        return f"Read:\n{context}\nAnswer {request.prompt}"

    def context(passages: Any) -> str:
        return " -- ".join(one.text for one in passages)

    passages = [Passage(name, name) for name in "abc"]
    request = Request(prompt="why?")
    options: dict[str, Any] = {"separator": " -- ", "together": together, "variable": "context"}
    template = split_template(prompt, context, **options)
    for some in (passages, passages[:1], []):
        front, behind = template.frame(request)
        shown = template.arrange(some)
        assert len(some) == len(shown)
        assert prompt(request, context(some)) == front + "".join(shown) + behind

    mute = split_template(lambda request, _: request.prompt, context, **options)
    with pytest.raises(ConfigError, match=r"\{context\} once"):
        mute.frame(request)


def test_other_shared_objects_evict_no_retriever() -> None:
    """A retriever's counts outlive any number of watched models."""
    runtime = Runtime()
    kept = runtime.host("retriever", object)
    others = [runtime.shared(number, object) for number in range(100)]

    assert runtime.shared(99, object) is others[-1]
    assert runtime.host("retriever", object) is kept
