"""Plant bugs one at a time, and see each of them caught by the tests.

Works on a copy of the tree. Each bug is one replacement in one file; the named
tests must fail with it, and pass without any. docs/planted_bugs.md lists them
for readers; `tests/test_planted_bugs.py` compares the two.

    python tools/plant_bugs.py [--only WORD]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from planted_bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[1]
MOST_S = 600.0  # the tests without a bug take a sixth of it, on a machine that does nothing else


def main() -> int:
    """Plant every bug; fail if one goes unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="plant only the bugs whose name has this word")
    word = parser.parse_args().only
    chosen = [bug for bug in BUGS if word in bug.name]
    missed = [bug for bug in chosen if not report(bug)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} planted bugs were caught")
    return 1 if missed else 0


def report(bug: Bug) -> bool:
    """Plant one bug and say how it was caught."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("ralmspec_plugins", "integrations", "benchmarks", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / bug.file
        text = file.read_text()
        if bug.right not in text:
            print(f"STALE   {bug.name}: {bug.file} no longer has what is to be replaced")
            return False
        file.write_text(text.replace(bug.right, bug.wrong))
        command = [sys.executable, "-m", "pytest", "-n0", "-qx", "--tb=line", "--show-capture=no"]
        try:
            run = subprocess.run(
                [*command, *bug.tests.split()],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                capture_output=True,
                timeout=MOST_S,
                check=False,
            )
            verdict = "caught" if run.returncode == 1 else "MISSED"
        except subprocess.TimeoutExpired:
            verdict = "hung"  # a test that does not end has noticed, too
        print(f"{verdict:7} {bug.name}", flush=True)
        return verdict != "MISSED"


if __name__ == "__main__":
    sys.exit(main())
