"""The notebooks run from start to end here, and are kept as text and with their outputs."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jupytext
import nbformat
import pytest
from jupyter_client.manager import start_new_async_kernel
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell as code

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IMPORTS = 3  # cells in which other packages may warn of their own affairs
WHO = "import os, sys; print(sys.executable, os.getcwd())"
FRESH = "get_ipython().reset(new_session=True); import os; os.chdir({!r}); del os"
QUESTIONS = "world.questions(6, seed=0)"  # in each notebook: the measured rounds, but for one
WHOLE = 6  # questions, as they are committed
SMALLER = {  # with fewer questions, where a notebook has it
    "latencies_s = (0.0, 0.02, 0.05, 0.1, 0.2)": "latencies_s = (0.0, 0.02)",
    "latencies_s = (0.0, 0.05, 0.1, 0.2, 0.4)": "latencies_s = (0.0, 0.05)",
    "latencies_s = (0.05, 0.1, 0.2, 0.4)": "latencies_s = (0.05, 0.1)",
    "latencies_s = (0.0, 0.01, 0.03, 0.1)": "latencies_s = (0.0, 0.01)",
    "passages=400": "passages=100",
    "passages=200": "passages=60",
    "sentences=6": "sentences=3",
    "max_tokens=96": "max_tokens=24",
    "max_tokens=64": "max_tokens=24",
    "max_tokens=48": "max_tokens=24",
    "max_tokens=32": "max_tokens=16",
    "stories[0].prompt, 160": "stories[0].prompt, 40",
    "stories[:3]": "stories[:2]",
    "for tokens in (32, 96, 160, 320)": "for tokens in (32, 160)",
    "for eta in (0, 5, 20)": "for eta in (0, 20)",
    "for following in (0, 1, 5, 10, 20)": "for following in (0, 5)",
}

Kernel: TypeAlias = tuple[Any, Any]  # its manager and its client

named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_is_something_to_run() -> None:
    """The tests below have a notebook each."""
    names = ["agents", "knn_lm", "langchain_quickstart"]
    names += ["llama_index_quickstart", "long_context", "multi_hop"]

    assert names == [path.stem for path in NOTEBOOKS]


@named
def test_a_notebook_says_what_its_text_says(path: Path) -> None:
    """Both halves of a pair have the same cells: `jupytext --sync` has been run."""
    notebook = nbformat.read(path, as_version=4)
    text = jupytext.read(path.with_suffix(".py"))

    assert cells(text) == cells(notebook)
    assert "ipynb,py:percent" == notebook.metadata["jupytext"]["formats"]


@named
def test_a_notebook_is_committed_with_its_outputs(path: Path) -> None:
    """As `make notebooks` leaves it: run once from start to end, with its pictures.

    Nothing names the machine on which it ran.
    """
    notebook = nbformat.read(path, as_version=4)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [kind for cell in ran for kind in kinds_of(cell)]

    assert list(range(1, len(ran) + 1)) == [cell.execution_count for cell in ran]
    assert {"image/png", "stdout"} <= set(kinds)
    drawn = any("SVG(" in cell.source for cell in ran)
    assert ("image/svg+xml" in kinds) == drawn
    assert not {"stderr", "error"} & set(kinds)
    shown = json.dumps([cell.outputs for cell in ran])
    assert not [place for place in ("/root", "/home", "/tmp", "/work") if place + "/" in shown]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all notebooks: their imports take longer than they do."""
    home = tmp_path_factory.mktemp("home")
    start = run_sync(start_new_async_kernel)
    manager, client = start(kernel_name="python3", cwd=home, env=os.environ | environment(home))
    yield manager, client
    client.stop_channels()
    run_sync(manager.shutdown_kernel)(now=True)


@named
def test_a_notebook_runs(path: Path, kernel: Kernel, tmp_path: Path) -> None:
    """From start to end, with this interpreter, without a network, and not in the checkout.

    With a single measured round of a smaller world. No name of another notebook is left.
    """
    run_in(kernel, nbformat.v4.new_notebook(cells=[code(FRESH.format(str(tmp_path)))]))

    check_run(path, tmp_path, 2, lambda notebook: run_in(kernel, notebook))


@pytest.mark.slow
@named
def test_a_notebook_runs_as_it_is_committed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise, with all measured rounds, and in a kernel of its own."""
    for name, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}

    check_run(
        path,
        folder,
        WHOLE,
        lambda notebook: NotebookClient(notebook, timeout=300, resources=resources).execute(),
    )


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a kernel without settings or models of whoever runs this."""
    places = {
        "HOME": home,
        "IPYTHONDIR": home / "ipython",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'integrations'}",
        "HF_HUB_OFFLINE": 1,
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {name: str(value) for name, value in places.items()}


def run_in(kernel: Kernel, notebook: Any) -> Any:
    manager, client = kernel
    running = NotebookClient(notebook, km=manager, timeout=300)
    running.kc = client
    return running.execute()


def check_run(path: Path, folder: Path, questions: int, run: Callable[[Any], Any]) -> None:
    """Run a notebook, and check what it shows and that it leaves no file."""
    notebook = asking(nbformat.read(path, as_version=4), questions)
    notebook.cells.append(code(WHO))
    done = run(notebook)

    assert f"{sys.executable} {folder}\n" == done.cells[-1].outputs[0].text
    assert [] == list(folder.iterdir())
    kinds = [kind for cell in done.cells[IMPORTS:] for kind in kinds_of(cell)]
    assert {"image/svg+xml", "image/png"} & set(kinds)
    assert "stderr" not in kinds


def asking(notebook: Any, questions: int) -> Any:
    """Have a notebook ask so many questions; with fewer than it has, also of a smaller world."""
    asked = [cell for cell in notebook.cells if QUESTIONS in cell.source]
    for cell in asked:
        cell.source = cell.source.replace(QUESTIONS, QUESTIONS.replace("6", str(questions)))
    assert len(asked) == 1
    if questions < WHOLE:
        for cell in notebook.cells:
            for whole, less in SMALLER.items():
                cell.source = cell.source.replace(whole, less)
    return notebook


def kinds_of(cell: Any) -> list[str]:
    """Say what a cell shows: the kinds of its data, or the name of its stream."""
    shown: list[str] = []
    for output in cell.get("outputs", ()):
        shown += output.get("data", ()) or [output.get("name", output.output_type)]
    return shown
