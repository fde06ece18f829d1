"""Simulated runs: traces, the paper's table, ablations, crowds, and what is written of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.cases import Arm
from benchmarks.published import (
    ARMS,
    DEMANDS,
    ONE_LANE,
    PUBLISHED,
    REGIMES,
    Demand,
    regime,
)
from benchmarks.simulated.studies import (
    CROWD_ARMS,
    Both,
    Point,
    crowd_rows,
    paper_cells,
    points,
    services,
    verdicts,
)
from benchmarks.simulated.tables import (
    ablation_tables,
    crowd_tables,
    demand_table,
    detail_tables,
    draw_ablations,
    draw_crowds,
    speed_up_tables,
)
from benchmarks.simulated.traces import (
    Follows,
    NoisyReplica,
    Traces,
    TraceWorkload,
    World,
    load_traces,
    run_arm,
)
from ralmspec_plugins import PassageCache
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.plain import plain
from ralmspec_plugins.types import Passage, Request

STEPS = 12
PASSAGES = 40
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CURVES = {
    "1000000x384": {
        "curves": {"numpy-flat, 2 threads": {"points": {"1": {"median_ms": 60.0}}}},
    }
}


def traces(*, k: int = 1, hidden: Sequence[Sequence[int]] | None = None) -> Traces:
    """Four walks through 40 random passages."""
    dice = np.random.default_rng(0)
    documents = dice.normal(size=(PASSAGES, 6)).astype(np.float32)
    walks = np.cumsum(dice.normal(size=(4, STEPS, 6)), axis=1).astype(np.float32)
    passages = [Passage(f"p{row:02}", "", f"article {row % 4}") for row in range(PASSAGES)]
    return Traces(passages, documents, walks, k=k, hidden=hidden, widest=20)


@pytest.fixture(scope="module")
def both() -> Both:
    hidden = [[row for row in range(PASSAGES) if row % 4 == trace] for trace in range(4)]
    return Both(traces(), traces(hidden=hidden))


def test_hits_are_ranked_by_inner_product() -> None:
    """The best of all passages come first; more are known than are asked for."""
    walk = traces(k=3)
    query = walk.encode("2.5")
    [hits] = walk.search([query])
    order = np.argsort(-walk.scores[2, 5], kind="stable")

    assert [hit.passage.id for hit in hits] == [f"p{row:02}" for row in order[:3]]
    assert walk.search_wide([query], 20)[0][:3] == hits == walk.truth(2, 5)


def test_what_is_hidden_is_never_found(both: Both) -> None:
    """A trace's own article is not there for it, and is for the others."""
    titles = {
        (trace, hit.passage.title)
        for trace in range(4)
        for step in range(STEPS)
        for hit in both.left_out.ranked(trace, step)
    }

    assert titles == {(trace, f"article {n}") for trace in range(4) for n in range(4) if n != trace}


def test_a_pool_of_all_hits_guesses_right() -> None:
    """A pool ranks as the search does, to the bit."""
    walk = traces(k=2)
    pool = PassageCache(walk, capacity=PASSAGES)
    for step in range(STEPS):
        query = walk.encode(f"1.{step}")
        pool.learn(query, walk.search_wide([query], 20)[0])

    assert [pool.guess(walk.encode(f"1.{n}")) for n in range(STEPS)] == [
        walk.truth(1, n) for n in range(STEPS)
    ]


@pytest.mark.parametrize("follows", list(Follows))
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("arm", [ARMS[0], ARMS[8], ARMS[11], ARMS[-1]], ids=lambda arm: arm.name)
def test_every_way_gives_the_plain_answer(follows: Follows, k: int, arm: Arm) -> None:
    """`run_arm` holds each answer to the truth; the plain loop over the workload finds the same."""
    walk = traces(k=k)
    world = World(traces=walk, follows=follows, search_s=lambda n: 5.0 + n, interval=2)
    ran = run_arm(world, arm)
    found = plain(world.workload, walk, Request(prompt="3")).retrieved

    assert ran.requests == 4
    assert [step.hits for step in found] == [walk.truth(3, step) for step in range(0, STEPS, 2)]


def test_the_plain_way_takes_the_plain_time() -> None:
    """12 steps of 1 and searches of 6 seconds: 84; the bound is 12 + 6, or 11 + 6 if guessed."""
    world = World(traces=traces(), follows=Follows.REWRITING, search_s=lambda n: 5.0 + n)
    ran = run_arm(world, Arm(name="plain", kind="plain"))

    assert (1.0, 0.0, 84 / 18) == (ran.speed_up, ran.saved, ran.bound)
    assert world.bound_s(first_guessed=True) == 17.0


def test_the_more_of_dropped_work_is_of_use_the_sooner() -> None:
    """Straying is the worst that can follow a wrong guess, reconverging the best."""
    speeds = []
    for follows in (Follows.STRAYING, Follows.REWRITING, Follows.CACHED, Follows.RECONVERGING):
        world = World(traces=traces(), follows=follows, search_s=lambda n: 9.0 + n)
        speeds.append(run_arm(world, Arm(name="one", prefetch=4)).speed_up)

    assert speeds == sorted(speeds)
    assert speeds[0] < speeds[1] < speeds[-1]


def test_a_shared_pool_knows_what_earlier_requests_found() -> None:
    """The same trace again is guessed from its first step on."""
    world = World(traces=traces(), follows=Follows.REWRITING, search_s=lambda n: 9.0 + n)
    alone = run_arm(world, Arm(name="own", prefetch=20), order=[1, 1, 1])
    shared = run_arm(world, Arm(name="shared", prefetch=20, shared=True), order=[1, 1, 1])

    assert shared.speed_up > alone.speed_up
    assert shared.guesses > alone.guesses


def test_a_replica_is_as_often_right_as_told() -> None:
    """Always, never, and with k = 3 all but the last hit are right."""
    walk = traces(k=3)
    query = walk.encode("0.3")
    right, wrong = NoisyReplica(walk, 1, 1.0).guess(query), NoisyReplica(walk, 1, 0.0).guess(query)

    assert right == walk.truth(0, 3)
    assert (wrong[:2], wrong[2]) == (right[:2], walk.ranked(0, 3)[3])


def test_cells_are_held_to_the_demands(both: Both) -> None:
    """A demand counts in its mode only, and against the best of the others where it names them."""
    arms = [arm for arm in ARMS if arm.name in (ONE_LANE, "+PSA", "+P(256)SA")]
    cells = paper_cells(both, arms=arms, regimes=REGIMES[:1], steps=STEPS)
    found = {(c["column"], c["mode"]): c["in_knowledge_base"]["speed_up"] for c in cells}
    best = max(found[name, "straying"] for name in ("+PSA", "+P(256)SA"))
    demand = Demand(REGIMES[0].name, ONE_LANE, 1.0, ("+PSA", "+P(256)SA"))
    said = verdicts(cells, [demand, Demand(REGIMES[0].name, ONE_LANE, 99.0)])
    reached = [v for v in said if v["mode"] == "straying" and v["place"] == "in_knowledge_base"]

    assert reached[0]["reached"] == found[ONE_LANE, "straying"] / best
    assert [v["held"] for v in said] == [v["mode"] == "rewriting" for v in said]
    assert not any(v["met"] for v in said if v["least"] == 99.0)


def test_every_published_number_and_demand_has_its_cell() -> None:
    """No name is misspelt, and published numbers are speed-ups."""
    names, places = {arm.name for arm in ARMS}, {one.name for one in REGIMES}

    assert {name for row in PUBLISHED.values() for name in row} <= names
    assert all(any(place.startswith(kind) for kind in PUBLISHED) for place in places)
    assert places == {regime(name).name for name in places}
    assert {(demand.arm, demand.regime) for demand in DEMANDS} <= {
        (name, place) for name in names for place in places
    }


def test_the_committed_table_meets_its_demands() -> None:
    """What the result file says holds for the numbers in it."""
    result = json.loads((RESULTS / "simulate_traces.json").read_text())
    said = verdicts(result["cells"])

    assert said == result["verdicts"]
    assert all(one["met"] for one in said if one["held"])
    assert len([one for one in said if one["held"]]) == 2 * len(DEMANDS)


def small_ablations(both: Both) -> dict[str, Any]:
    """Run the first points of each ablation's first line, and its last one."""
    lines: dict[str, list[Point]] = {}
    for point in points(CURVES, both.inside.count):
        ours = lines.setdefault(point.ablation, [])
        if not ours or ours[0].line == point.line:
            ours.append(point)
    rows = []
    for ours in lines.values():
        for point in dict.fromkeys((ours[0], ours[1], ours[-1])):
            steps = min(point.steps, (STEPS - 1) // point.interval + 1)
            few = replace(point, steps=steps, order=point.order and point.order[:3])
            rows.append(few.run(both, Follows.REWRITING))
    return {"rows": rows}


def test_ablations_are_run_and_written(both: Both, tmp_path: Path) -> None:
    """Each point has its speed-up and seconds in a table, and each ablation a picture."""
    pytest.importorskip("matplotlib")
    result = small_ablations(both)
    table = ablation_tables(result)
    row = next(row for row in result["rows"] if row["ablation"] == "stride")
    few = {"rows": [row for row in result["rows"] if row["ablation"] in ("stride", "lanes")]}
    pictures = draw_ablations(few, tmp_path / "made")

    assert f"{row['in_knowledge_base']['speed_up']:.2f} / " in table
    assert ablation_tables(result, "stride").startswith("| stride | 1 | 2 | OS3 |")
    assert [picture.name for picture in pictures] == ["made_stride.svg", "made_lanes.svg"]
    assert all(picture.read_text().startswith("<?xml") for picture in pictures)


def test_every_ablation_of_the_issue_is_there() -> None:
    """Stride, cache, prefetch, interval, window, lanes, latency, passages, batching."""
    found = {point.ablation for point in points(CURVES, 4)}

    assert found == {
        *("stride", "cache", "prefetch", "interval", "window"),
        *("lanes", "latency", "passages", "batching"),
    }


def test_crowds_are_run_and_written(both: Both, tmp_path: Path) -> None:
    """A crowd merges, takes longer than one request, and gains by guesses where nothing is full."""
    pytest.importorskip("matplotlib")
    [scan, *_, remote, _, servers] = services(CURVES)
    longer = Traces(
        [Passage(f"p{row}", "") for row in range(50)],
        np.eye(50, dtype=np.float32),
        np.eye(50, dtype=np.float32)[None, :32].repeat(2, axis=0),
    )
    result = {"rows": crowd_rows(longer, [scan, remote, servers], counts=(1, 4))}
    found = {(row["service"], row["requests"], row["arm"]): row for row in result["rows"]}
    plainly, ours = (found[remote.name, 4, arm.name] for arm in CROWD_ARMS)

    assert servers.writers == 256
    assert found[scan.name, 4, "plain"]["mean_batch"] > 1.0
    assert found[scan.name, 4, "plain"]["median_s"] > found[scan.name, 1, "plain"]["median_s"]
    assert plainly["queries"] == 4 * 32
    assert ours["guess_rate"] is not None
    assert f"{plainly['median_s']:.1f} s" in crowd_tables(result)
    assert len(draw_crowds(result, tmp_path / "crowd")) == 2


def test_tables_say_what_the_result_file_says() -> None:
    """The committed file's first cell stands in both tables, and no demand is left out."""
    result = json.loads((RESULTS / "simulate_traces.json").read_text())
    first = next(cell for cell in result["cells"] if cell["mode"] == result["held_to"])
    shown = f"{first['in_knowledge_base']['speed_up']:.2f} / {first['left_out']['speed_up']:.2f}"

    assert f"| {first['column']} | {shown} |" in detail_tables(result)
    assert speed_up_tables(result).count("\n| base (fixed 3) |") == 3
    assert demand_table(result).count("\n") == 1 + len(DEMANDS)


def test_traces_are_read_from_files(tmp_path: Path) -> None:
    """A folder holds vectors, articles and passages; without one of them it says which."""
    with pytest.raises(InputError, match=r"trace_vectors\.npz"):
        load_traces(tmp_path)
    documents, questions = np.eye(4, 3), np.ones((2, 5, 3))
    np.savez(tmp_path / "trace_vectors.npz", docs=documents, q=questions)
    (tmp_path / "trace_queries.json").write_text(json.dumps([{"article": "A"}, {"article": "B"}]))
    rows = [{"id": f"p{n}", "title": "AABB"[n], "text": "x"} for n in range(4)]
    (tmp_path / "wikipedia_passages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load_traces(tmp_path, left_out=True, k=2)

    assert (loaded.count, loaded.steps, loaded.size) == (2, 5, 4)
    assert [hit.passage.id for hit in loaded.truth(0, 0)] == ["p2", "p3"]
    assert load_traces(tmp_path, articles=1).count == 1


def test_what_does_not_fit_is_refused() -> None:
    """A k that is not known, vectors of another length, more steps than there are."""
    with pytest.raises(ConfigError, match="k must be"):
        traces(k=21)
    with pytest.raises(InputError, match="do not fit"):
        Traces([Passage("p", "")], np.ones((1, 2), np.float32), np.ones((1, 1, 3), np.float32))
    with pytest.raises(ConfigError, match="no 7 steps, interval 2"):
        TraceWorkload(traces(), Follows.STRAYING, steps=7, interval=2)
    with pytest.raises(InputError, match=r"batch_curves\.py"):
        services({})
