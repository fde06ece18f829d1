"""Cases that are measured: every way in turn, equal answers, bounds from the plain run beside."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from benchmarks.harness import measure as harness
from benchmarks.harness import results
from benchmarks.harness.cases import Arm, Case, Store
from benchmarks.harness.inputs import Library, LoadedModel, Shelves, load_model
from benchmarks.harness.measure import measure, read, run
from benchmarks.harness.results import bounds_of
from ralmspec_plugins.diagnosis import Bounds, UnequalError
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval import HashingEncoder
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Answer, Passage, Span, Stats

WORDS = "the keeper of a lighthouse counted ships and storms by night".split()  # noqa: SIM905
TEXT = " ".join(WORDS[(at * at + at // 7) % len(WORDS)] for at in range(400))
PASSAGES = [Passage(f"p{at}", " ".join(TEXT.split()[at : at + 12])) for at in range(0, 300, 12)]
LIBRARY = Library("drawn words", PASSAGES, [TEXT, TEXT[::-1]])
ENCODER = HashingEncoder(dimension=32)
ARMS = (Arm(name="fixed", kind="fixed", prefetch=1), Arm(name="continuous"))


def made(**chosen: Any) -> Case:
    """A case that takes a moment."""
    small = {"requests": 2, "repetitions": 2, "steps": 4, "interval": 2, "query_tokens": 6}
    settings = {"name": "c", "store": Store(), "arms": ARMS, "model": "random:1x64", **small}
    return Case(**{**settings, **chosen})


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """A drawn model of one layer."""
    return load_model("random:1x64", [TEXT])


@pytest.fixture(scope="module")
def shelves() -> Shelves:
    """Passages with their vectors."""
    return Shelves.of(LIBRARY, ENCODER)


def test_all_ways_take_turns(model: LoadedModel, shelves: Shelves) -> None:
    """Plain, A, B for each request, and all of it again; the round that warms up is left out."""
    rows = measure(made(), model, shelves).rows

    turns = [(repetition, request) for repetition in range(2) for request in range(2)]
    assert [(*turn, arm) for turn in turns for arm in ("plain", "fixed", "continuous")] == [
        (row["repetition"], row["request"], row["arm"]) for row in rows
    ]


def test_each_run_stands_beside_its_plain_one(model: LoadedModel, shelves: Shelves) -> None:
    """The plain run's seconds and bounds are those of the same request and repetition."""
    rows = measure(made(), model, shelves).rows
    plain = {(row["repetition"], row["request"]): row for row in rows if row["arm"] == "plain"}

    assert all(plain[row["repetition"], row["request"]]["wall_s"] == row["plain_s"] for row in rows)
    assert len({row["plain_s"] for row in rows}) == len(plain)
    assert {4} == {row["steps"] for row in rows}
    assert all(row["round_trips"] == row["queries"] == 4 for row in plain.values())


def test_searches_are_kept_with_their_sizes(model: LoadedModel, shelves: Shelves) -> None:
    """From them follows what a batch costs."""
    plain, fixed, _ = measure(made(requests=1, repetitions=1), model, shelves).rows

    assert [1, 1, 1, 1] == [size for size, _ in plain["searches"]]
    assert fixed["queries"] == sum(size for size, _ in fixed["searches"])
    assert plain["search_s"] == pytest.approx(
        sum(seconds for _, seconds in plain["searches"]) / 4, abs=1e-5
    )


def test_first_requests_are_predicted(model: LoadedModel, shelves: Shelves) -> None:
    """Where searching takes nothing from writing: each way's first request, none behind it."""
    store = Store(place="remote", wait_s=0.01)

    rows = measure(made(store=store, repetitions=1), model, shelves).rows

    assert [("fixed", 0), ("continuous", 0)] == [
        (row["arm"], row["request"]) for row in rows if row.get("predicted_s", 0) > 0.01
    ]
    assert not any("predicted_s" in row for row in measure(made(), model, shelves).rows)


@pytest.mark.parametrize(
    ("store", "arm"),
    [
        (Store(size=60), Arm(name="a", kind="fixed")),
        (Store(size=60, k=2), Arm(name="a", kind="fixed", shared=True, capacity=5)),
        (Store(backend="faiss-hnsw"), Arm(name="a", kind="fixed", replica=True)),
        (Store(backend="bm25s", size=60), Arm(name="a", kind="fixed", overlap=True)),
        (Store(wait_s=0.001), Arm(name="a", lanes=4)),
        (Store(place="remote", wait_s=0.001), Arm(name="a", lanes=4, replica=True)),
        (Store(place="beside"), Arm(name="a", prefetch=20)),
    ],
    ids=lambda one: one.told if isinstance(one, Store) else "",
)
def test_any_store_is_measured(
    model: LoadedModel, shelves: Shelves, store: Store, arm: Arm
) -> None:
    """Every kind of store, here and in other processes, with the ways that fit it."""
    case = made(store=store, arms=(arm,), requests=1, repetitions=1)

    rows = measure(case, model, shelves).rows

    assert ["plain", "a"] == [row["arm"] for row in rows]
    assert rows[1]["guesses"] > 0


@pytest.mark.parametrize("workload", ["sentences", "one_shot"])
def test_any_workload_is_measured(model: LoadedModel, shelves: Shelves, workload: str) -> None:
    """Sentences of the script, and the whole of it at once."""
    case = made(workload=workload, requests=1, repetitions=1)

    rows = measure(case, model, shelves).rows

    assert ["plain", "fixed", "continuous"] == [row["arm"] for row in rows]
    assert all(row["steps"] == rows[0]["steps"] >= 1 for row in rows)


def test_requests_are_answered_at_once(model: LoadedModel, shelves: Shelves) -> None:
    """Two at a time, then the one that is left: each has its row, those together their time."""
    case = made(requests=3, concurrency=2, repetitions=1, arms=ARMS[:1])

    rows = measure(case, model, shelves).rows

    assert [0, 1, 0, 1, 2, 2] == [row["request"] for row in rows]
    assert ["plain", "plain", "fixed", "fixed", "plain", "fixed"] == [row["arm"] for row in rows]
    assert rows[0]["together_s"] == rows[1]["together_s"] != rows[2]["together_s"]


def test_an_unequal_answer_stops_everything(
    model: LoadedModel, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number for a wrong answer is never given."""
    rightly = harness._Ways.run

    def wrongly(self: Any, engine: Any, workload: Any, requests: Any) -> list[Answer]:
        answers = rightly(self, engine, workload, requests)
        if not engine._session.speculate:
            return answers
        return [dataclasses.replace(answer, text=answer.text + "!") for answer in answers]

    monkeypatch.setattr(harness._Ways, "run", wrongly)

    with pytest.raises(UnequalError, match="fixed"):
        measure(made(), model, shelves)


def test_bounds_are_read_off_a_plain_run() -> None:
    """N a from questions and writing, b(1) from searches; other spans do not count."""
    spans = (
        Span("start", 0.0, 9.0),
        Span("ask", 0.0, 1.0),
        Span("search", 1.0, 5.0, queries=1),
        Span("extend", 5.0, 8.0),
        Span("ask", 8.0, 9.0),
        Span("search", 9.0, 11.0, queries=1),
        Span("extend", 11.0, 14.0),
    )
    plain = Answer("", (), (), Stats(segments=2, timeline=spans))

    assert Bounds(steps=2, step_s=4.0, search_s=3.0) == bounds_of(plain)


def test_a_suite_is_on_the_disk_after_each_case(tmp_path: Path) -> None:
    """What was measured before a crash is kept, and reads as it was written."""
    target = tmp_path / "out" / "results.json"
    seen: list[int] = []

    def watch(case: Case, row: dict[str, Any]) -> None:
        if case.name == "second" and not seen:
            seen.append(len(json.loads(target.read_bytes())["cases"]))

    cases = [made(name=name, requests=1, repetitions=1) for name in ("first", "second")]
    result = run("mine", cases, LIBRARY, ENCODER, target, watch)

    assert [1] == seen
    assert json.loads(json.dumps(result)) == read(target)
    assert ["first", "second"] == [one["case"]["name"] for one in result["cases"]]
    assert ["results.json"] == [file.name for file in target.parent.iterdir()]


def test_a_suite_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases on the disk stay as they are; with another commit or other counts nothing is kept."""
    monkeypatch.setattr(results, "_commit", lambda: "one")
    target, measured = tmp_path / "results.json", []
    cases = [made(name=name, requests=1, repetitions=1) for name in ("first", "second")]

    def run_all(chosen: list[Case]) -> Any:
        measured.clear()
        return run("mine", chosen, LIBRARY, ENCODER, target, lambda case, _: measured.append(case))

    begun = run_all(cases[:1])
    whole = run_all(cases)
    assert {"second"} == {case.name for case in measured}
    assert json.loads(json.dumps(begun["cases"])) == whole["cases"][:1]
    assert json.loads(json.dumps(whole)) == read(target)
    assert begun["models"] == whole["models"] != {}
    run_all([dataclasses.replace(cases[0], steps=3)])
    assert {"first"} == {case.name for case in measured}
    monkeypatch.setattr(results, "_commit", lambda: "other")
    run_all([dataclasses.replace(cases[0], steps=3)])
    assert {"first"} == {case.name for case in measured}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Nothing is half-written, and no scrap is left."""
    target = tmp_path / "report.md"
    write_whole(target, b"old")

    with pytest.raises(TypeError):
        write_whole(target, "no bytes")  # type: ignore[arg-type]

    assert (b"old", ["report.md"]) == (
        target.read_bytes(),
        [file.name for file in tmp_path.iterdir()],
    )


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other"}'])
def test_other_files_are_not_read_as_results(tmp_path: Path, content: str) -> None:
    """The message names the file."""
    (tmp_path / "r.json").write_text(content)

    with pytest.raises(InputError, match=r"r\.json holds no results"):
        read(tmp_path / "r.json")
