"""Cases of benchmarks: what they stand for, and what is refused."""

import json
from typing import Any

import pytest

from benchmarks.harness.cases import PAPER, SUITES, Arm, Case, Store, lanes
from benchmarks.harness.cli import SuiteName
from ralmspec_plugins import Continuous, FixedStride, OptimalStride
from ralmspec_plugins.errors import ConfigError


@pytest.mark.parametrize(
    ("arm", "schedule"),
    [
        (Arm(name="a", kind="fixed", stride=5, overlap=True), FixedStride(stride=5, overlap=True)),
        (Arm(name="a", kind="os3"), OptimalStride(overlap=False)),
        (Arm(name="a", window=7, lanes=3), Continuous(window=7, lanes=3)),
    ],
)
def test_an_arm_makes_its_schedule(arm: Arm, schedule: object) -> None:
    """Each setting of an arm reaches the schedule that it names."""
    assert schedule == arm.settings().schedule


def test_the_plain_arm_does_not_speculate() -> None:
    """What everything is compared with is the plain loop."""
    assert not Arm(name="plain", kind="plain").settings().speculate


def test_pools_are_per_request_or_shared() -> None:
    """An arm's pool has its capacity and eviction, shared or not."""
    own = Arm(name="a", capacity=9, eviction="fifo").settings()
    shared = Arm(name="a", capacity=9, eviction="fifo", shared=True).settings()

    assert (9, "fifo", None) == (own.capacity, own.eviction, own.pool)
    assert shared.pool is not None
    assert shared.pool.capacity == 9


def test_the_papers_arms_are_the_papers_tables() -> None:
    """PAPERS 1.11: fixed 3 or OS3, written on or not, prefetching 1, 20 or 256."""
    told = {arm.name: (arm.kind, arm.stride, arm.overlap, arm.prefetch) for arm in PAPER}

    assert ("fixed", 3, False, 1) == told["base (fixed 3)"]
    assert ("fixed", 3, True, 20) == told["+PA"]
    assert ("os3", 3, True, 20) == told["+PSA"]
    assert 9 == len(told)


def test_lanes_are_told_in_the_name() -> None:
    """Two arms that differ in lanes alone have different names."""
    arm = lanes(Arm(name="continuous"), 4)

    assert ("continuous, 4 lanes", 4) == (arm.name, arm.lanes)


@pytest.mark.parametrize("suite", list(SuiteName))
def test_suites_are_data(suite: SuiteName) -> None:
    """Every suite has cases of different names, and each is JSON."""
    cases = SUITES[suite]()

    assert len(cases) == len({case.name for case in cases}) > 0
    assert all(json.loads(json.dumps(case.record()))["name"] == case.name for case in cases)


def test_the_command_knows_all_suites() -> None:
    """The command's names are those of the suites."""
    assert set(SUITES) == {suite.value for suite in SuiteName}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"place": "elsewhere"}, "known are here, beside, remote"),
        ({"backend": "bm25s", "place": "remote"}, "only numpy-flat is served"),
        ({"place": "beside", "wait_s": 1.0}, "place='remote'"),
    ],
)
def test_stores_that_cannot_be_served_are_refused(settings: dict[str, Any], words: str) -> None:
    """The message says what is served where."""
    with pytest.raises(ConfigError, match=words):
        Store(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"requests": 0}, "requests must be at least 1, got 0"),
        ({"workload": "flare"}, "known are interval, sentences, one_shot"),
        ({"arms": (Arm(name="a"), Arm(name="a"))}, "need different names"),
        ({"arms": (Arm(name="plain"),)}, "need different names"),
        ({"store": Store(backend="bm25s"), "arms": (Arm(name="a", replica=True),)}, "dense"),
    ],
)
def test_cases_without_a_meaning_are_refused(settings: dict[str, Any], words: str) -> None:
    """Counts below 1, arms that could not be told apart, a replica of words."""
    given: dict[str, Any] = {"name": "c", "store": Store(), "arms": (Arm(name="a"),)}

    with pytest.raises(ConfigError, match=words):
        Case(**{**given, **settings})


def test_unknown_schedules_are_refused() -> None:
    """The message lists those that there are."""
    with pytest.raises(ConfigError, match="known are plain, fixed, os3, continuous"):
        Arm(name="a", kind="clever")  # type: ignore[arg-type]


def test_a_shared_pool_with_a_replica_is_refused() -> None:
    """It would be passed over in silence."""
    with pytest.raises(ConfigError, match="a pool of its own"):
        Arm(name="a", shared=True, replica=True)
