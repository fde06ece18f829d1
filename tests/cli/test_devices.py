"""`--device`: it reaches each model that a command loads, and one that is not there is named."""

from pathlib import Path
from typing import Any

import pytest

from ralmspec_plugins.retrieval import open_retriever, read_passages, save
from tests.cli.conftest import Run, lines
from tests.retrieval.test_encoders import bert, sentence_model  # noqa: F401 fixtures

torch = pytest.importorskip("torch")

NOWHERE = "cuda:77"


@pytest.fixture(scope="module")
def encoded(text_file: Path, sentence_model: Path, tmp_path_factory: Any) -> Path:  # noqa: F811
    """A knowledge base whose encoder is a model."""
    from ralmspec_plugins.retrieval.encoders import SentenceTransformerEncoder

    path: Path = tmp_path_factory.mktemp("kb") / "encoded"
    passages = read_passages(text_file)[:5]
    save(open_retriever("numpy-flat", passages, SentenceTransformerEncoder(sentence_model)), path)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "q", "--kb", "KB", "--model", "MODEL"),
        ("ask", "q", "--long-context", "TEXT", "--model", "MODEL"),
        ("generate", "q", "--model", "MODEL"),
        *(
            (
                "generate",
                "q",
                "--model",
                "MODEL",
                "--long-context",
                "TEXT",
                "--drafter",
                "rapid",
                *o,
            )
            for o in ((), ("--draft-model", "MODEL"), ("--encoder", "ENCODER"))
        ),
        ("serve", "--kb", "KB", "--model", "MODEL", "--port", "0"),
        ("diagnose", "q", "--kb", "KB", "--model", "MODEL"),
        ("ask", "q", "--kb", "ENCODED", "--model", "MODEL"),
        ("ask", "q", "--kb", "KB", "--encoder", "ENCODER", "--model", "MODEL"),
        ("index", "TEXT", "OUT", "--backend", "numpy-flat", "--encoder", "ENCODER"),
        ("knn", "build", "--text", "TEXT", "--out", "OUT", "--model", "MODEL"),
    ],
    ids=" ".join,
)
def test_a_device_that_is_not_there_is_named(
    run: Run,
    command: tuple[str, ...],
    kb: Path,
    encoded: Path,
    model: Path,
    sentence_model: Path,  # noqa: F811
    text_file: Path,
    tmp_path: Path,
) -> None:
    """In one sentence, before anything is answered or built."""
    places = {"KB": kb, "ENCODED": encoded, "MODEL": model, "ENCODER": sentence_model}
    places |= {"TEXT": text_file, "OUT": tmp_path / "out"}
    result = run(*(places.get(word, word) for word in command), "--device", NOWHERE)

    assert (1, "") == (result.exit_code, result.stdout)
    assert f"cannot use the device '{NOWHERE}'" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_cpu_may_be_named(run: Run, encoded: Path, model: Path) -> None:
    """The answer is the same as without it."""
    asked = ("ask", "The keeper", "--kb", encoded, "--model", model, "--max-tokens", 8)
    [expected], [answer] = lines(run(*asked)), lines(run(*asked, "--device", "cpu"))

    assert expected["answer"]
    assert expected["answer"] == answer["answer"]


def test_a_datastore_s_model_has_a_device(run: Run, model: Path, tmp_path: Path) -> None:
    """When it is built and when it is used."""
    text, out = tmp_path / "text.txt", tmp_path / "store"
    text.write_text("In Esk they tell of seven ships and a keeper.")
    built = run("knn", "build", "--text", text, "--out", out, "--model", model, "--device", "cpu")
    assert 0 == built.exit_code, built.output
    for command in (("generate", out, "In Esk"), ("perplexity", out, "--text", text)):
        result = run("knn", *command, "--model", model, "--k", 2, "--device", NOWHERE)
        assert 1 == result.exit_code
        assert "cannot use the device" in result.stderr
