"""The benchmark for GPUs: all of it runs on the CPU, and goes on where it was stopped."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch

from benchmarks.gpu import cli
from benchmarks.gpu.cli import Part, gpu
from benchmarks.gpu.report import goals, report
from benchmarks.gpu.rows import Rows, TimeIsUp, in_turn
from benchmarks.gpu.searching import SearchSizes, Task, Way, _told, callers, drawn_corpus
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.torch_flat import TorchFlat

CPU = torch.device("cpu")


def run(out: Path, *parts: Part, minutes: float = 9.0) -> dict[str, Any]:
    gpu(out, list(parts), "cpu", minutes, tiny=True)
    result: dict[str, Any] = json.loads((out / "results.json").read_text())
    return result


def lines(out: Path) -> list[str]:
    return (out / "rows.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    "part", [Part.SEARCH_1M, Part.PASSES, pytest.param(Part.COPYING, marks=pytest.mark.slow)]
)
def test_a_part_is_measured_once(
    tmp_path: Path, part: Part, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows have raw times, and a second run measures nothing anew."""
    rows = run(tmp_path, Part.DEVICE, part)["rows"]
    measured, page = lines(tmp_path), (tmp_path / "report.md").read_text()

    assert "cpu" == rows["device"]["device"]
    assert len(rows) > 1
    for name, row in rows.items():
        assert name.startswith((part.value, "device"))
        assert row["took_s"] >= 0
        assert row["at"]
        assert name == "device" or {"ms", "per_second"} & row.keys(), row
    assert "Not a GPU" in page
    assert page in capsys.readouterr().out
    run(tmp_path, Part.DEVICE, part)
    assert measured == lines(tmp_path)


def test_a_stopped_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without time no row is begun, which is said; the next run has them all."""
    run(tmp_path, Part.LONG, minutes=0.0)
    assert "Not complete: the time was up before 'long: context 8'" in capsys.readouterr().out
    assert len(lines(tmp_path)) == 1
    assert run(tmp_path, Part.LONG)["rows"].keys() == {"long: context 8", "long: context 16"}
    assert "Not complete" not in capsys.readouterr().out


def test_a_row_begins_only_if_it_would_end_in_time(tmp_path: Path) -> None:
    """As long as the longest of its part; the first one of a run, and other parts, in any case."""

    def row(took_s: float) -> Callable[[], dict[str, Any]]:
        return lambda: {"took_s": took_s}

    path = tmp_path / "rows.jsonl"
    rows = Rows(path, CPU, 9.0, tiny=True)
    rows._journal.of("a: 1", row(500.0))
    rows.of("a: 2", row(0.0))
    rows._journal.of("a: 3", row(600.0))
    assert not rows.complete(["b: 1"])
    for begun in (lambda: rows.of("a: 4", row(0.0)), lambda: rows.complete(["a: 1", "a: 4"])):
        with pytest.raises(TimeIsUp, match="before 'a: 4'"):
            begun()
    assert rows.complete(["a: 1", "a: 2", "a: 3"])
    again = Rows(path, CPU, 9.0, tiny=True)
    again.of("a: 4", row(0.0))
    assert again.values.keys() == {"a: 1", "a: 2", "a: 3", "a: 4"}


@pytest.mark.parametrize("cut", [1, 40, -2, -5])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, cut: int) -> None:
    """In the middle of any line, the first one too; nothing whole is measured again."""
    path = tmp_path / "rows.jsonl"
    rows = Rows(path, CPU, 9.0, tiny=True)
    for name in ("a: 1", "a: 2"):
        rows.of(name, lambda name=name: {"told": name})  # type: ignore[misc]
    path.write_bytes(path.read_bytes()[:cut])
    again = Rows(path, CPU, 9.0, tiny=True)

    assert list(again.values) == (["a: 1"] if cut < 0 else [])
    assert "a: 2" == again.of("a: 2", lambda: {"told": "a: 2"})["told"]
    assert "a: 2" == Rows(path, CPU, 9.0, tiny=True).values["a: 2"]["told"]


def test_a_run_that_takes_too_long_ends_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a row, whatever it waits for, with a sentence; and not once it is done."""
    ended: Queue[int] = Queue()
    monkeypatch.setattr(os, "_exit", ended.put)
    with cli._stopped_after(60.0):
        pass
    with cli._stopped_after(1e-4):
        assert 1 == ended.get(timeout=60)

    assert "Stopped after 0.0001 minutes in the middle of a row." in capsys.readouterr().err
    for one in threading.enumerate():
        if isinstance(one, threading.Timer):
            one.join()
    assert ended.empty()


def test_slow_ways_are_timed_less_often() -> None:
    """Each at least once."""
    assert {"a": 1, "b": 1} == {
        name: len(took) for name, took in in_turn({"a": int, "b": int}, 5, CPU, most_s=0.0).items()
    }
    assert 5 == len(in_turn({"a": int}, 5, CPU)["a"])


def test_single_searches_are_left_out_where_each_copies_the_vectors() -> None:
    sizes = SearchSizes(passages=300, dimension=16, batches=(1,), callers=(1,), repetitions=1)
    task = Task.drawn("a", sizes, CPU)
    for share, told in ((1.0, "per_second"), (0.5, "left_out")):
        way = Way("half", TorchFlat, {"device": "cpu", "precision": "half"}, share=share)
        assert told in _told(way.opened(task.corpus), callers, task, CPU)


def test_rows_of_another_device_are_not_mixed_in(tmp_path: Path) -> None:
    Rows(tmp_path / "rows.jsonl", CPU, 1.0, tiny=False)
    with pytest.raises(InputError, match="other settings"):
        run(tmp_path, Part.DEVICE)


def test_a_missing_gpu_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=r"cannot use the device 'cuda'.*docs/gpu.md"):
        gpu(tmp_path, [Part.DEVICE], "cuda", 9.0, tiny=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path) -> None:
    """With sizes of a few seconds; answers are asserted equal inside."""
    rows = run(tmp_path)["rows"]

    assert {part.value for part in Part} == {name.partition(":")[0] for name in rows}
    assert not any("left_out" in row for row in rows.values())


def test_what_is_drawn_has_length_one_and_the_norm_it_says() -> None:
    corpus = drawn_corpus(300, 16, CPU)
    lengths = (corpus.vectors.astype("f8") ** 2).sum(axis=1) ** 0.5

    assert lengths.min() > 0.999999
    assert lengths.max() <= corpus.largest_norm < 1.000001
    assert corpus.vectors.tobytes() == drawn_corpus(300, 16, CPU).vectors.tobytes()


def test_goals_are_of_full_sizes_only() -> None:
    """Small sizes measure nothing; of full ones the best way counts."""
    small = {"passages": 2000, "median_ms": {"1": 1.0, "64": 1.0}, "times_single_searches": 99.0}
    assert all("not measured" in line for line in goals({"search-20m: b(n), a": small}))

    full = {"passages": 20_000_000}
    rows = {
        "b(n), a": {**full, "median_ms": {"1": 2.0, "64": 5.0}},
        "b(n), b": {**full, "median_ms": {"1": 2.0, "64": 2.5}},
        "callers, a": {**full, "times_single_searches": 21.0},
        "copying: 8": {"model": "Llama-8B", "decoding_speed": 1.9, "tokens_a_pass": 3.0},
        "faiss": {"left_out": "no GPU build"},
    }
    assert [line.partition(": ")[2] for line in goals(rows)[:1]] == ["1.25 (b(n), b)"]
    assert "21.00 (callers, a)" in goals(rows)[1]
    assert "1.90 (copying: 8)" in goals(rows)[2]
    about = {"gpu": "A", "device": "cuda", "machine": "m", "versions": {"torch": "2"}}
    assert "- faiss: no GPU build" in report(about, rows)
    assert "Not a GPU" not in report(about, rows)


def test_full_sizes_are_those_of_the_page() -> None:
    """20 million vectors of 768 dimensions, batches up to 512, contexts up to 128k."""
    parts: Any = cli._parts(tiny=False)

    assert set(parts) == set(Part)
    sizes = parts[Part.SEARCH_20M].keywords["sizes"]
    assert (20_000_000, 768, 1, 512) == (
        sizes.passages, sizes.dimension, sizes.batches[0], sizes.batches[-1],
    )  # fmt: skip
    assert parts[Part.LONG].keywords["sizes"].contexts[-1] == 131_072
