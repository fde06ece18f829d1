"""`ralmspec ask`: answers, sources and numbers; all ways of asking wrongly."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from ralmspec_plugins import Stats
from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.cli.app import app
from ralmspec_plugins.cli.ask import ask
from ralmspec_plugins.demo import make_world
from ralmspec_plugins.diagnosis import UnequalError, check_equal
from ralmspec_plugins.lm import HuggingFaceLM
from ralmspec_plugins.retrieval import HashingEncoder, open_retriever, save
from ralmspec_plugins.speculators import POLICIES
from ralmspec_plugins.types import Answer, Passage
from tests.cli.conftest import Run, lines

QUICK = ("--max-tokens", 24, "--threads", 1)


@pytest.fixture
def base(kb: Path, model: Path) -> tuple[object, ...]:
    """What every question needs."""
    return "--kb", kb, "--model", model, *QUICK


def _outcome(record: dict[str, Any]) -> tuple[object, ...]:
    return record["question"], record["answer"], record["sources"]


def test_an_answer_is_one_object(run: Run, base: tuple[object, ...]) -> None:
    """It has the question, the answer, its sources in order of use, and all numbers."""
    result = run("ask", "The keeper of Esk", *base)
    [record] = lines(result)

    assert result.exit_code == 0, result.output
    assert record["question"] == "The keeper of Esk"
    assert record["answer"]
    assert record["sources"][0].keys() == {"id", "title", "score", "text"}
    assert record["stats"]["segments"] == 6
    assert record["stats"].keys() >= {
        *("wall_s", "first_text_s", "searches", "queries", "batch_sizes", "remembered"),
        *("segments", "wasted_segments", "guesses", "accepted", "reused", "retries"),
        *("guess_rate", "search_s", "write_s", "overlap_s"),
    }


@pytest.mark.parametrize(
    "settings",
    [
        ("--schedule", "continuous", "--lanes", 3, "--window", 4),
        ("--schedule", "fixed", "--stride", 2, "--overlap"),
        ("--schedule", "os3", "--no-overlap"),
        ("--workload", "one-shot"),
        ("--workload", "flare", "--theta", 0.9, "--beta", 0.1, "--query-by", "question"),
        ("--workload", "iter-retgen", "--iterations", 2),
        ("--workload", "multi-hop", "--hops", "ircot", "--max-hops", 2, "--answer-only"),
        ("--temperature", 0.8, "--seed", 3),
        ("--prefetch", 1, "--capacity", 2, "--eviction", "fifo"),
        ("--interval", 3, "--query-tokens", 5, "--k", 2),
        ("--template", "Q: {prompt}\nA:", "--stop", "."),
    ],
    ids=str,
)
def test_speculation_never_changes_an_answer(
    run: Run, base: tuple[object, ...], settings: tuple[object, ...]
) -> None:
    """With any settings, text and sources are those of --plain."""
    plain = run("ask", "Seven ships", "--plain", *base, *_shared(settings))
    result = run("ask", "Seven ships", "--compare", *base, *settings)

    assert result.exit_code == 0, result.output
    assert [record["mode"] for record in lines(result)] == ["plain", "speculative"]
    assert [_outcome(lines(plain)[0])] * 2 == [_outcome(record) for record in lines(result)]


def _shared(settings: tuple[object, ...]) -> tuple[object, ...]:
    """Keep what changes the answer itself, or goes with --plain in any case."""
    return () if settings[0] == "--schedule" else settings


def test_a_file_gives_one_line_for_each_question(
    tmp_path: Path, run: Run, base: tuple[object, ...]
) -> None:
    """Empty lines are passed over; JSON lines are read by their 'question'."""
    asked = ["The storm of Gild", "Ünïcode in Jorn"]
    (tmp_path / "q.txt").write_text(f"{asked[0]}\n\n  {asked[1]}\r\n", encoding="utf-8")
    told = "\n".join(json.dumps({"question": text}) for text in asked)
    (tmp_path / "q.jsonl").write_text(told, encoding="utf-8")
    plain, spoken = (run("ask", "--file", tmp_path / f"q.{end}", *base) for end in ("txt", "jsonl"))

    assert asked == [record["question"] for record in lines(plain)]
    assert [_outcome(one) for one in lines(plain)] == [_outcome(one) for one in lines(spoken)]


def test_one_bad_question_does_not_lose_the_others(
    tmp_path: Path, run: Run, base: tuple[object, ...]
) -> None:
    """It is named on stderr, and the exit code says that something failed."""
    text = "\n".join(["The storm", "very " * 300 + "long", "The sky"])
    (tmp_path / "q.txt").write_text(text, encoding="utf-8")
    result = run("ask", "--file", tmp_path / "q.txt", *base)

    assert result.exit_code == 1
    assert ["The storm", "The sky"] == [record["question"] for record in lines(result)]
    assert "question 2" in result.stderr
    assert "context is 256" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("q", "--schedule", "bogus"), 2, "continuous"),
        (("q", "--interval", "0"), 2, "--interval"),
        (("q", "--workload", "flair"), 2, "iter-retgen"),
        (("q", "--theta", "1.5"), 2, "--theta"),
        (("q", "--hops", "tags"), 2, "search-r1"),
        (("q", "--latency", "fast"), 2, "50ms"),
        (("q", "--latency", "50"), 2, "give 50ms or 50s"),
        (("",), 1, "the question is empty"),
        ((" \t",), 1, "the question is empty"),
        (("q", "--plain", "--compare"), 2, "one of"),
        (("q", "--file", "q.txt"), 2, "either"),
        ((), 2, "either"),
        (("q", "--stride", "2"), 1, "--lanes and --window"),
        (("q", "--hops", "ircot"), 1, "--hops needs --workload multi-hop"),
        (("q", "--workload", "iter_retgen", "--theta", "0.9"), 1, "--theta needs --workload flare"),
        (("--file", "nowhere.txt"), 1, "nowhere.txt"),
        (("q", "--timeline", "out.gif"), 1, ".html"),
        (("q", "--timeline", "nowhere/out.html"), 1, "no folder"),
        (("word " * 300,), 1, "context is 256"),
        (("q", "--template", "no place"), 1, "{prompt}"),
        (("q", "--deadline", "0.001ms"), 1, "within"),
        (("q", "--chat", "front"), 1, "chat"),
        (("\udcff",), 1, "UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_explained(
    run: Run,
    base: tuple[object, ...],
    arguments: tuple[str, ...],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Exit code 2 for what the command line alone shows, 1 for the rest; never a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = run("ask", *arguments, *base)

    assert (code, "") == (result.exit_code, result.stdout)
    assert words in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_damaged_index_is_explained(
    tmp_path: Path, run: Run, kb: Path, model: Path
) -> None:
    """Also one whose bytes are not those that were written."""
    broken = tmp_path / "kb"
    broken.mkdir()
    for file in kb.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "vectors.npy").write_bytes(b"\0" * (kb / "vectors.npy").stat().st_size)
    damaged = run("ask", "q", "--kb", broken, "--model", model)
    missing = run("ask", "q", "--kb", tmp_path / "nowhere", "--model", model)

    assert [1, 1] == [damaged.exit_code, missing.exit_code]
    assert "damaged" in damaged.stderr
    assert "not a saved knowledge base" in missing.stderr
    assert "ralmspec index INPUT OUTPUT" in missing.stderr


def test_a_folder_that_is_no_model_is_explained(tmp_path: Path, run: Run, kb: Path) -> None:
    """An empty folder, and a folder that is not there."""
    empty = run("ask", "q", "--kb", kb, "--model", tmp_path)
    missing = run("ask", "q", "--kb", kb, "--model", tmp_path / "nowhere")

    assert [1, 1] == [empty.exit_code, missing.exit_code]
    assert "config.json" in empty.stderr
    assert "nowhere" in missing.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": ', "q.jsonl: line 3 is not JSON (Expecting value: character 13)"),
        ('{"prompt": "x"}', 'q.jsonl: line 3 needs an object with a text, such as {"question"'),
        ('{"question": 7}', "q.jsonl: line 3 needs an object with a text"),
        ('{"question": " "}', "q.jsonl: line 3 the question is empty"),
        ("9" * 5000, "q.jsonl: line 3 is not JSON"),
        ("[" * 100000, "q.jsonl: line 3 is not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_line_of_questions_is_one_sentence(
    tmp_path: Path, run: Run, base: tuple[object, ...], line: str, words: str
) -> None:
    """With its number, and no question is asked."""
    (tmp_path / "q.jsonl").write_text('{"question": "a"}\n\n' + line, encoding="utf-8")
    result = run("ask", "--file", tmp_path / "q.jsonl", *base)

    assert (1, "") == (result.exit_code, result.stdout)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


OTHER = "/nowhere/at/all"


@pytest.fixture(scope="module")
def world_kb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A knowledge base of an invented world."""
    path = tmp_path_factory.mktemp("world") / "kb"
    told = [Passage(one.id, one.text, one.title) for one in make_world(5, 40).passages()]
    save(open_retriever("numpy-flat", told, HashingEncoder(64)), path)
    return path


@pytest.mark.parametrize("command", ["ask", "diagnose"])
def test_the_demo_s_model_is_never_silent(
    run: Run, kb: Path, world_kb: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It says what it is over its world, also if asked for; and refuses another one."""
    loaded: list[object] = []
    monkeypatch.setattr(build, "Weights", lambda model, *_, **__: loaded.append(model) or 1 / 0)
    refused = run(command, "q", "--kb", kb)
    own, forced = (run(command, "q", "--kb", world_kb), run(command, "q", "--kb", kb, *DEMO))
    other = run(command, "q", "--kb", kb, "--model", OTHER)

    assert (1, "") == (refused.exit_code, refused.stdout)
    assert "give --model PATH" in refused.stderr
    assert "--model demo takes it all the same" in refused.stderr
    assert ["demo", "demo", OTHER] == loaded
    assert [True, True, False] == ["it is tiny" in one.stderr for one in (own, forced, other)]
    assert 1 == own.stderr.count("\n")


DEMO = ("--model", "demo")


def test_one_strange_passage_is_enough(tmp_path: Path, run: Run) -> None:
    """The samples are of the whole knowledge base."""
    told = [Passage(one.id, one.text) for one in make_world(5, 16).passages()]
    strange = [*told[:-1], Passage("strange", "The red fox is not of that world.")]
    save(open_retriever("numpy-flat", strange, HashingEncoder(64)), tmp_path / "kb")

    assert "give --model" in run("ask", "q", "--kb", tmp_path / "kb").stderr


def test_options_are_in_panels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each group."""
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("ask", "--help").output
    places = [shown.find(f"─ {name} ─") for name in PANELS]

    assert all(place > 0 for place in places)
    assert places[0] < shown.find("--kb", places[0]) < places[1]
    assert places[2] < shown.find("--schedule", places[2]) < places[3]


PANELS = (
    *("Search", "Questions and answers", "Speculation", "Model and output", "Single workloads"),
    "Long contexts",
)


def test_timelines_are_drawn(tmp_path: Path, run: Run, base: tuple[object, ...]) -> None:
    """One file for one question, numbered files for several; both runs in one drawing."""
    (tmp_path / "q.txt").write_text("The storm\nThe sky\n", encoding="utf-8")
    one = run("ask", "The sky", "--compare", "--timeline", tmp_path / "t.html", *base)
    two = run("ask", "--file", tmp_path / "q.txt", "--timeline", tmp_path / "u.html", *base)
    page = (tmp_path / "t.html").read_text(encoding="utf-8")

    assert [0, 0] == [one.exit_code, two.exit_code]
    assert ">speculative<" in page
    assert ">plain<" in page
    assert {"t.html", "u-1.html", "u-2.html", "q.txt"} == {file.name for file in tmp_path.iterdir()}


@pytest.mark.usefixtures("terminal")
def test_a_person_sees_text_sources_and_numbers(run: Run, base: tuple[object, ...]) -> None:
    """On a terminal the text streams; added costs are labelled; markup in a question is text."""
    record = lines(run("ask", "The [red] sky", *base, "--json"))[0]
    result = run("ask", "The [red] sky", "--compare", *base, "--latency", "1ms")

    assert result.exit_code == 0, result.output
    assert "The [red] sky [plain]" in result.stdout
    assert record["sources"][0]["id"] in result.stdout
    assert "passage" in result.stdout
    assert "round trips" in result.stdout
    assert "equal: text" in result.stdout
    assert "added: 1.00 ms per round trip, simulated remote store" in result.stderr


def test_questions_come_from_stdin(
    run: Run, base: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --file -."""
    arguments = ["ask", "--file", "-", *(str(one) for one in base)]
    result = CliRunner().invoke(app, arguments, input="The storm\nThe sky\n")

    assert ["The storm", "The sky"] == [record["question"] for record in lines(result)]


def test_a_difference_is_an_error() -> None:
    """It is said where two texts part."""
    answers = [Answer(text, (), None, Stats()) for text in ("the old sky", "the old sea")]

    with pytest.raises(UnequalError, match="from character 9 on"):
        check_equal("q", *answers)


def test_names_on_the_command_line_are_the_core_s() -> None:
    """No policy was forgotten, none invented."""
    annotation = inspect.signature(inspect.unwrap(ask)).parameters["eviction"].annotation

    assert set(POLICIES) == set(get_args(annotation))


def _parameters(name: str) -> list[Any]:
    group: Any = typer.main.get_command(app)
    parameters: list[Any] = group.commands[name].params
    return parameters


def test_every_option_has_a_help_text() -> None:
    """Also those of the groups that commands share."""
    without = [
        (name, one.name)
        for name in ("index", "ask", "demo", "diagnose")
        for one in _parameters(name)
        if not (one.help or "").strip()
    ]

    assert [] == without


def test_a_switch_interval_reaches_the_engine(
    run: Run, base: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own is left alone unless one is given."""
    seen: list[float] = []
    write = HuggingFaceLM.write

    def noting(*given: Any) -> Any:
        seen.append(round(sys.getswitchinterval(), 6))
        return write(*given)

    monkeypatch.setattr(HuggingFaceLM, "write", noting)
    before = round(sys.getswitchinterval(), 6)
    run("ask", "Seven ships", *base)
    usual, seen = set(seen), []
    monkeypatch.setattr(HuggingFaceLM, "write", noting)
    run("ask", "Seven ships", *base, "--switch-interval", "0.5ms")

    assert {before} == usual
    assert 0.0005 in seen


def test_no_latency_adds_nothing() -> None:
    """Zero is a time too."""
    assert options.duration("0") == 0.0
    assert output.speed_up(1.0, 0.0) == "as fast"


@pytest.mark.parametrize("drafter", ["suffix", "passages", "both"])
def test_drafts_never_change_an_answer(run: Run, base: tuple[object, ...], drafter: str) -> None:
    """With a drafter, text and sources are those of a token a pass; passes are counted."""
    question = "the ships that passed the ships that passed the ships that"
    result = run("ask", question, "--compare", "--drafter", drafter, *base, "--interval", 8)
    slow, fast = lines(result)

    assert result.exit_code == 0, result.output
    assert slow["answer"]
    assert _outcome(slow) == _outcome(fast)
    assert slow["stats"]["drafts_accepted"] == 0 < slow["stats"]["model_passes"]
    assert fast["stats"].keys() >= {"tokens_per_pass", "decisions_retaken"}
    assert fast["stats"]["model_passes"] > 0


def test_plain_and_drafts_contradict_each_other(run: Run, base: tuple[object, ...]) -> None:
    """The message says which of the two to leave out."""
    result = run("ask", "q", "--plain", "--drafter", "suffix", *base)

    assert result.exit_code == 2
    assert "leave out --drafter" in " ".join(result.stderr.split())


def test_passes_are_summed_up_where_drafts_were_accepted() -> None:
    """In the line for a person: tokens, passes, drafts; nothing of them without drafts."""
    stats = Stats(model_passes=9, tokens_written=39, drafts_accepted=30, decisions_retaken=2)

    assert "39 tokens in 9 passes (30 drafts accepted, 2 choices taken again)" in output.in_short(
        stats
    )
    assert "passes" not in output.in_short(Stats(model_passes=9, tokens_written=9))
