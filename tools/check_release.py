"""Check the files that would be published: their contents, their README, and an installation.

`make release-check` builds them and runs this; `--names` prints the packages that pyproject.toml
names.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("ralmspec_plugins", "langchain_ralmspec", "llama_index_ralmspec")
NEEDED: Final = (
    *(f"{package}/__init__.py" for package in PACKAGES),
    *(f"{package}/py.typed" for package in PACKAGES),
    "ralmspec_plugins/demo/model/model.safetensors",
)
TRIAL: Final = """
import sys
from ralmspec_plugins import Engine, __version__
from ralmspec_plugins.testing import EchoWorkload, WordRetriever

assert __version__ == sys.argv[1], __version__
with Engine(EchoWorkload(), WordRetriever(["red fox", "blue whale"])) as engine:
    assert engine.run("whale red").text == "blue whale\\nred fox"
"""
_RELATIVE: Final = re.compile(r'(?:href|src)="(?!https?:|#|mailto:)([^"]*)"')


def project() -> dict[str, Any]:
    """Return the project's table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return table["project"]


def named_packages() -> list[str]:
    """Return the packages that the project and its extras name, without those for a GPU."""
    extras = [one for some in project()["optional-dependencies"].values() for one in some]
    names = {re.split(r"[\[<>=;~! ]", one)[0] for one in (*project()["dependencies"], *extras)}
    return sorted(names - {"ralmspec-plugins", "faiss-gpu"})


def contents_faults(names: list[str]) -> list[str]:
    """Return what a wheel lacks, and what it should not have."""
    missing = [f"the wheel lacks {name}" for name in NEEDED if name not in names]
    allowed = (*(f"{package}/" for package in PACKAGES), f"ralmspec_plugins-{project()['version']}")
    strange = [f"the wheel has {name}" for name in names if not name.startswith(allowed)]
    caches = [f"the wheel has {name}" for name in names if "__pycache__" in name]
    licence = any(name.endswith("licenses/LICENSE") for name in names)
    return [*missing, *strange, *caches, *([] if licence else ["the wheel lacks LICENSE"])]


def readme_faults(metadata: str) -> list[str]:
    """Return the links of the rendered README that lead nowhere on a package index."""
    from readme_renderer import markdown

    html = markdown.render(str(message_from_string(metadata).get_payload()))
    if not html:
        return ["the README is not rendered"]
    return [f"the README has a relative link: {link}" for link in _RELATIVE.findall(html)]


def installed_faults(wheel: Path) -> list[str]:
    """Return what goes wrong with the wheel in a new environment, outside of the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        steps = (
            [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel],
            [python, "-I", "-c", TRIAL, project()["version"]],
            [python, "-m", "pip", "check"],
        )
        for step in steps:
            done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                return [f"{step[1:4]}: {done.stdout}{done.stderr}"]
    return []


def faults(folder: Path) -> list[str]:
    """Return all faults of the files in a folder."""
    [wheel] = folder.glob("*.whl")
    [source] = folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    lacking = [one for one in ("pyproject.toml", "README.md", "LICENSE") if one not in sources]
    return [
        *contents_faults(names),
        *readme_faults(text),
        *(f"the source archive lacks {one}" for one in lacking),
        *installed_faults(wheel),
    ]


def main() -> int:
    """Print the faults, or the names."""
    if sys.argv[1:] == ["--names"]:
        print(*named_packages())
        return 0
    found = faults(Path(sys.argv[1]).resolve())  # pip runs in another folder
    for fault in found:
        print(fault, file=sys.stderr)
    if not found:
        print("The files can be published.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
