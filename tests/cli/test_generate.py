"""`ralmspec generate`, and files that are read whole."""

from pathlib import Path
from typing import Any

import pytest

from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from tests.cli.conftest import Run, lines

SMALL = ("--chunk-tokens", 16, "--retrieve-tokens", 48, "--threshold", -1)
QUICK = ("--max-tokens", 12, "--threads", 1)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of two thousand positions."""
    folder = tmp_path_factory.mktemp("reader") / "model"
    tiny_llama(context=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long text."""
    path = tmp_path_factory.mktemp("long") / "log.txt"
    days = [f"On day {day} the keeper counted {day * 7 % 40} ships." for day in range(12)]
    path.write_text(" ".join(days), encoding="utf-8")
    return path


def _outcome(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["answer"], record["sources"]


@pytest.mark.parametrize("command", ["ask", "generate"])
@pytest.mark.parametrize("eta", [0, 10])
def test_a_retrieved_part_changes_no_text(
    run: Run, reader: Path, log: Path, command: str, eta: int
) -> None:
    """Compared with token by token, with the model's own text as with p^."""
    rapid = ("--long-context", log, "--drafter", "rapid", "--eta", eta, *SMALL)
    question = "How many ships did the keeper count on day 5?"
    result = run(command, question, "--compare", "--model", reader, *rapid, *QUICK)
    slow, fast = lines(result)

    assert result.exit_code == 0, result.output
    assert slow["answer"]
    assert _outcome(slow) == _outcome(fast)
    assert [f"{log}#0001"] == [source["id"] for source in slow["sources"]]
    assert log.read_text() == slow["sources"][0]["text"]
    assert ("plain", "speculative") == (slow["mode"], fast["mode"])


def test_a_transfer_gives_another_text(run: Run, reader: Path, log: Path) -> None:
    """That of p^ is not the model's own."""
    rapid = ("--long-context", log, "--drafter", "rapid", *SMALL)
    question = ("How many ships?", "--model", reader, *rapid, *QUICK)
    own, moved = (run("generate", *question, "--eta", eta) for eta in (0, 40))

    assert lines(own)[0]["answer"] != lines(moved)[0]["answer"]


@pytest.mark.parametrize("drafter", ["none", "suffix"])
def test_a_text_is_continued_without_files(run: Run, reader: Path, drafter: str) -> None:
    """There are no sources, and drafts change nothing."""
    prompts = ("the ships that passed the ships that", "--model", reader, *QUICK)
    plain = run("generate", *prompts)
    result = run("generate", *prompts, "--drafter", drafter)
    [record] = lines(result)

    assert result.exit_code == 0, result.output
    assert record["answer"]
    assert [] == record["sources"]
    assert lines(plain)[0]["answer"] == record["answer"]


@pytest.mark.parametrize("command", ["ask", "generate"])
def test_a_corpus_is_drafted_from(
    run: Run, reader: Path, log: Path, tmp_path: Path, command: str
) -> None:
    """What `draft build` made of texts changes no text; drafts of it are verified."""
    corpus = tmp_path / "corpus"
    prompt = ("the ships that passed", "--model", reader, "--long-context", log, *QUICK)
    plain = run(command, *prompt)
    (tmp_path / "written.txt").write_text(log.read_text() + lines(plain)[0]["answer"])
    built = run("draft", "build", tmp_path / "written.txt", corpus, "--model", reader)
    result = run(command, *prompt, "--compare", "--drafter", "corpus", "--corpus", corpus)
    slow, fast = lines(result)

    assert built.exit_code == 0, built.output
    assert result.exit_code == 0, result.output
    assert fast["answer"]
    assert _outcome(slow) == _outcome(fast)
    assert lines(plain)[0]["answer"] == fast["answer"]
    assert fast["stats"]["model_passes"] < slow["stats"]["model_passes"]


def test_a_folder_without_a_corpus_is_named(run: Run, reader: Path, tmp_path: Path) -> None:
    """A wrong folder, and the corpus of another tokenizer, are errors in words."""
    prompt = ("generate", "the ships", "--model", reader, *QUICK, "--drafter", "corpus")
    result = run(*prompt, "--corpus", tmp_path / "none")
    (tmp_path / "text.txt").write_text("The ships that passed the island.")
    run("draft", "build", tmp_path / "text.txt", tmp_path / "demo", "--model", "demo")
    other = run(*prompt, "--corpus", tmp_path / "demo")

    assert (1, 1) == (result.exit_code, other.exit_code)
    assert str(tmp_path / "none") in "".join(result.stderr.split())
    assert "tokenizer" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "q", "--drafter", "rapid"), "needs --long-context"),
        (("serve", "--kb", "kb", "--drafter", "rapid"), "needs --long-context"),
        (("generate", "q", "--drafter", "corpus"), "needs --corpus"),
        (("serve", "--kb", "kb", "--drafter", "corpus"), "needs --corpus"),
        (("ask", "q", "--corpus", "kb"), "--corpus needs --drafter corpus"),
        (("ask", "q", "--long-context", "{log}", "--eta", 5), "--eta needs --drafter rapid"),
        (("ask", "q", "--long-context", "{log}", "--kb", "kb"), "--kb cannot be given with"),
        (("ask", "q", "--long-context", "{log}", "--interval", 8), "--interval cannot be"),
        (("ask", "q", "--long-context", "{log}", "--workload", "flare"), "--workload cannot"),
        (("ask", "q", "--long-context", "{log}", "--schedule", "os3"), "--schedule cannot"),
        (("ask", "q", "--long-context", "{log}", "--window", 3), "--window cannot"),
        (("ask", "q", "--long-context", "{log}", "--capacity", 9), "--capacity cannot"),
        (("ask", "q", "--long-context", "{log}", "--eviction", "lfu"), "--eviction cannot"),
        (("generate", "q", "--plain", "--drafter", "suffix"), "leave out --drafter"),
        (("generate", "q", "--long-context", "{log}", "--drafter", "rapid", "--eta", -1), "eta"),
        (("ask", "q"), "--kb"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    run: Run, log: Path, arguments: tuple[Any, ...], said: str
) -> None:
    """With exit code 2, before a model is loaded."""
    result = run(*(str(one).format(log=log) for one in arguments))

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_file_that_is_not_there_is_an_error(run: Run, reader: Path, tmp_path: Path) -> None:
    """Named, before the model is loaded."""
    result = run("generate", "q", "--long-context", tmp_path / "no.txt", "--model", reader)

    assert result.exit_code == 1
    assert "no.txt does not exist" in " ".join(result.stderr.split()).replace(" ", " ")


def test_an_empty_retrieval_is_an_error_of_p_hat(run: Run, reader: Path, log: Path) -> None:
    """And says what to change."""
    rapid = ("--long-context", log, "--drafter", "rapid", "--eta", 5, "--threshold", 1)
    result = run("generate", "q", "--model", reader, *rapid, *QUICK)

    assert result.exit_code == 1
    assert "lower the threshold" in " ".join(result.stderr.split())
