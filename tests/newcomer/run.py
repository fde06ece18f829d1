"""Judge answers to the newcomer's tasks, in an environment that has the wheel alone.

python tests/newcomer/run.py --wheel dist/x.whl --site site [--answers FOLDER]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
TASKS: Final = tuple(sorted(path.stem for path in (HERE / "checks").glob("*.py")))
EXTRAS: Final = "langchain,langchain-agents,llama-index"


def judged(
    task: str, answers: Path, folder: Path, python: Path | str, environment: dict[str, str]
) -> str:
    """Return what is wrong with the answer to a task; "" if it passes.

    The folder gets copies of what is given, of the answers and of the checks; the check runs in it.
    """
    for name, source in {"given": HERE / "given", "checks": HERE / "checks"}.items():
        shutil.copytree(source, folder / name, dirs_exist_ok=True)
    shutil.copytree(answers, folder / "answers", dirs_exist_ok=True)
    check = [str(python), "-c", f"import sys; sys.path.insert(0, ''); import checks.{task}"]
    done = subprocess.run(
        check, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if not done.returncode:
        return ""
    return done.stderr.strip().rpartition("\n")[2] or "the check failed"


def installed(wheel: Path, folder: Path) -> Path:
    """Install the wheel with its extras into a new environment, and return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = HERE.parents[1] / "constraints.txt"
    given = ["-c", str(constraints)] if constraints.exists() else []
    what = f"{wheel.resolve()}[{EXTRAS}]"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *given, what], check=True)
    return python


def main() -> int:
    """Judge all tasks, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help="without it, this Python's own packages")
    parser.add_argument("--site", type=Path, help="without it, the site is not looked at")
    parser.add_argument("--answers", type=Path, default=HERE / "solutions")
    given = parser.parse_args()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    environment |= {"HF_HUB_OFFLINE": "1"}
    if given.site:
        environment |= {"NEWCOMER_SITE": str(given.site.resolve())}
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = installed(given.wheel, folder / "venv") if given.wheel else Path(sys.executable)
        for task in TASKS:
            work = folder / task
            work.mkdir()
            fault = judged(task, given.answers, work, python, environment)
            failed += bool(fault)
            print(f"{task}: {fault or 'passed'}")
    print(f"{len(TASKS) - failed} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
