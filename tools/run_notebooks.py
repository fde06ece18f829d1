"""Execute the notebooks and keep their outputs: `make notebooks`.

Each is made of its text (`notebooks/*.py`), runs in a folder of its own, without a network, and is
written with its outputs. Times in them are this machine's: run it with nothing else on it.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "notebooks"
IMPORTS: Final = 3  # cells in which other packages may warn


def executed(text: Path) -> Any:
    """Return a notebook with its outputs."""
    notebook = jupytext.read(text)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=900, resources=resources, coalesce_streams=True)
        client.execute()
    return notebook


def cleaned(notebook: Any) -> Any:
    """Return the notebook without what differs from run to run, and what other packages warn of."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if number < IMPORTS and cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    return notebook


def main() -> None:
    """Execute those that are named, or all."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'integrations'}",
    }
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.py"))
    for name in names:
        print(name, flush=True)
        notebook = cleaned(executed(FOLDER / f"{name}.py"))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
