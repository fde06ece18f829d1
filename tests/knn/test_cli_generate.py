"""`ralmspec knn generate` and `ralmspec knn perplexity`, from files to JSON."""

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner, Result

from ralmspec_plugins.cli.app import app
from ralmspec_plugins.cli.knn import NeighbourOptions
from ralmspec_plugins.knn import KNNLanguageModel, build_datastore
from ralmspec_plugins.knn.search import SEARCHES
from ralmspec_plugins.lm.huggingface import load
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer

TEXTS = [
    f"{who} counted the ships that passed {where}."
    for who in ("She", "He")
    for where in ("the island", "at night", "before the storm", "the lighthouse")
]
PROMPT = "She counted"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["knn", *map(str, arguments)])


def lines(result: Result) -> list[dict[str, Any]]:
    """Read stdout as one object a line, with nothing else between."""
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama(context=128).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "ships"
    build_datastore(TEXTS, path, *load(model, "auto", None))
    return path


def test_a_text_is_continued(store: Path, model: Path) -> None:
    """As from Python, with what it took."""
    [record] = lines(run("generate", store, PROMPT, "--model", model, "--k", 4, "--max-tokens", 12))
    with KNNLanguageModel.from_pretrained(model, store, k=4) as lm:
        expected = lm.generate(PROMPT, max_tokens=12)

    assert record["tokens"] == list(expected.state.tokens)
    assert (record["prompt"], record["text"]) == (PROMPT, expected.text)
    assert (record["mode"], record["neighbours"]) == ("speculative", 48)
    assert record["stats"]["segments"] == 12


@pytest.mark.parametrize(
    "options",
    [
        ("--k", 1, "--weight", 1, "--schedule", "fixed", "--stride", 4),
        ("--temperature", 0.9, "--seed", 5, "--distance-temperature", 20),
        ("--schedule", "os3", "--overlap", "--prefetch", 64, "--k", 8),
        ("--schedule", "os3", "--no-overlap", "--gamma-limit", 0.95),
        ("--following", 3, "--followed", 2, "--capacity", 50, "--window", 4),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_both_runs_are_equal(store: Path, model: Path, options: tuple[object, ...]) -> None:
    """`--compare` runs both, and every option reaches them."""
    command = ("generate", store, PROMPT, "--model", model, "--max-tokens", 20, "--compare")
    plain, speculative = lines(run(*command, *options))

    assert [plain["mode"], speculative["mode"]] == ["plain", "speculative"]
    assert plain["tokens"] == speculative["tokens"]
    assert plain["stats"]["guesses"] == 0


def test_an_index_is_kept(store: Path, model: Path, tmp_path: Path) -> None:
    """Built and saved the first time, opened the second, to the same text."""
    pytest.importorskip("faiss")
    command = ("generate", store, PROMPT, "--model", model, "--k", 2, "--max-tokens", 6)
    options = ("--search", "hnsw", "--index", tmp_path / "hnsw")
    [first] = lines(run(*command, *options))
    saved = sorted(file.name for file in (tmp_path / "hnsw").iterdir())
    [second] = lines(run(*command, *options))

    assert saved
    assert first["tokens"] == second["tokens"]


def test_a_replica_guesses(store: Path, model: Path, tmp_path: Path) -> None:
    """With an index that is kept; the text is the one of the cache."""
    pytest.importorskip("faiss")
    command = ("generate", store, PROMPT, "--model", model, "--k", 2, "--max-tokens", 6)
    stride = ("--schedule", "fixed", "--stride", 3)
    [cached] = lines(run(*command, *stride))
    options = (*stride, "--replica", "hnsw", "--replica-index", tmp_path / "hnsw")
    [first] = lines(run(*command, *options))
    saved = sorted(file.name for file in (tmp_path / "hnsw").iterdir())
    [second] = lines(run(*command, *options))

    assert saved
    assert first["tokens"] == second["tokens"] == cached["tokens"]
    assert second["stats"]["guesses"] == 6 > cached["stats"]["guesses"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--replica", "hnsw", "--followed", 3), "--followed belongs to the cache"),
        (("--replica", "hnsw", "--capacity", 9, "--prefetch", 64), "--capacity, --prefetch"),
        (("--search", "hnsw", "--prefetch", 64), "--prefetch belongs to --search exact"),
        (("--rerank", 64), "--rerank belongs to --search hnsw and ivfpq"),
        (("--schedule", "fixed", "--gamma-limit", 0.9), "--gamma-limit does not belong"),
        (("--schedule", "os3", "--gamma-limit", 1.5), "gamma_limit"),
    ],
    ids=lambda given: " ".join(map(str, given)) if isinstance(given, tuple) else "",
)
def test_options_without_effect_are_refused(
    store: Path, model: Path, options: tuple[object, ...], message: str
) -> None:
    """Nobody believes for an hour that they did something."""
    result = run("generate", store, PROMPT, "--model", model, *options)

    assert result.exit_code != 0
    assert message in result.stderr


def test_candidates_are_measured_again_as_asked(store: Path, model: Path, tmp_path: Path) -> None:
    """`--rerank` reaches the search: fewer than k are no candidates."""
    pytest.importorskip("faiss")
    command = ("generate", store, PROMPT, "--model", model, "--k", 4, "--max-tokens", 4)
    approximate = ("--search", "hnsw", "--index", tmp_path / "hnsw")
    for rerank in (0, 8):
        assert lines(run(*command, *approximate, "--rerank", rerank))
    refused = run(*command, *approximate, "--rerank", 2)

    assert refused.exit_code != 0
    assert "rerank must be 0, or at least k = 4, got 2" in refused.stderr


def test_prompts_come_from_a_file(store: Path, model: Path, tmp_path: Path) -> None:
    """One a line; one that is too long for the context is named, and the others are written."""
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\n{'ships ' * 120}\nHe passed\n")
    result = run("generate", store, "--file", file, "--model", model, "--max-tokens", 4)
    records = [json.loads(line) for line in result.stdout.splitlines()]

    assert result.exit_code == 1
    assert "question 2" in result.stderr
    assert "the model's context is 128" in result.stderr
    assert [record["prompt"] for record in records] == [PROMPT, "He passed"]


def test_a_timeline_is_drawn(store: Path, model: Path, tmp_path: Path) -> None:
    """The page of every other command."""
    page = tmp_path / "out.html"
    result = run("generate", store, PROMPT, "--model", model, "--max-tokens", 4, "--timeline", page)

    assert result.exit_code == 0
    assert "<svg" in page.read_text()


def test_held_out_texts_are_measured(store: Path, model: Path, tmp_path: Path) -> None:
    """Both numbers, for each weight; impossible tokens have none."""
    (tmp_path / "held.txt").write_text(TEXTS[0])
    (tmp_path / "other.txt").write_text("A senor pays")
    [known] = lines(
        run(
            "perplexity",
            store,
            "--text",
            tmp_path / "held.txt",
            "--model",
            model,
            "--k",
            1,
            "--weight",
            0.9,
            "--weight",
            0.1,
        )
    )
    [unknown] = lines(
        run(
            "perplexity",
            store,
            "--text",
            tmp_path / "other.txt",
            "--model",
            model,
            "--k",
            1,
            "--weight",
            1,
            "--block",
            8,
            "--stride",
            4,
        )
    )

    assert known["interpolated"]["0.9"] < known["interpolated"]["0.1"] < known["model"]
    assert (known["texts"], known["k"]) == (1, 1)
    assert known["tokens"] == len(tiny_tokenizer().encode(TEXTS[0], add_special_tokens=False))
    assert unknown["interpolated"] == {"1.0": None}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("generate", "nowhere", PROMPT), 1, "nowhere is no datastore"),
        (("perplexity", "nowhere", "--text", __file__), 1, "is not a .txt, .md,"),
        (("generate", "{store}", PROMPT, "--weight", 2), 1, "weight must be above 0"),
        (("generate", "{store}", PROMPT, "--plain", "--compare"), 2, "--compare"),
        (("generate", "{store}", PROMPT, "--index", "x"), 1, "--index belongs to --search hnsw"),
        (("generate", "{store}", PROMPT, "--replica-index", "x"), 1, "belongs to --replica hnsw"),
        (("generate", "{store}", PROMPT, "--replica", "exact"), 2, "--replica"),
        (("generate", "{store}"), 2, "--file"),
        (("generate", "{store}", PROMPT, "--search", "fast"), 2, "--search"),
        (("generate", "{store}", PROMPT, "--stride", 3), 1, "--stride does not belong"),
    ],
)
def test_what_cannot_be_done_is_explained(
    store: Path, model: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    """In one paragraph, with the exit code of its kind."""
    filled = [str(one).replace("{store}", str(store)) for one in arguments]
    result = run(*filled, "--model", model)

    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_another_model_is_refused_unless_allowed(store: Path, tmp_path: Path) -> None:
    """Its keys mean something else."""
    tiny_llama(seed=3, context=128).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    command = ("generate", store, PROMPT, "--model", tmp_path, "--max-tokens", 2)

    assert "does not fit" in run(*command).stderr
    assert run(*command, "--any-model").exit_code == 0


def test_every_search_has_a_name() -> None:
    """The command line offers what the package has."""
    assert list(get_args(get_type_hints(NeighbourOptions)["search"])) == list(SEARCHES)


@pytest.mark.parametrize("command", [("generate", PROMPT), ("perplexity",)])
def test_the_demo_s_model_refuses_another_world(
    store: Path, command: tuple[str, ...], tmp_path: Path
) -> None:
    """Before it is loaded; asked for by name, it is tried, and does not fit this datastore."""
    (tmp_path / "a.txt").write_text("She counted the ships.")
    name, *prompt = command
    more = () if prompt else ("--text", tmp_path / "a.txt")
    refused = run(name, store, *prompt, *more)
    forced = run(name, store, *prompt, *more, "--model", "demo")

    assert [1, 1] == [refused.exit_code, forced.exit_code]
    assert "give --model PATH" in refused.stderr
    assert "it is tiny" in forced.stderr
    assert "fingerprint" in forced.stderr


def test_an_empty_prompt_is_refused(store: Path, model: Path) -> None:
    """Before anything is loaded."""
    result = run("generate", store, " ", "--model", model)

    assert result.exit_code == 1
    assert "the question is empty" in result.stderr
