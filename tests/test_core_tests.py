"""The tests of the core (`.github/core-tests.txt`) are collected where numpy alone is installed."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = {*sys.stdlib_module_names, "numpy", "pytest", "hypothesis", "ralmspec_plugins"}


def core_tests() -> list[Path]:
    """Return the files that `make test-core` collects."""
    lines = (ROOT / ".github" / "core-tests.txt").read_text(encoding="utf-8").split()
    left_out = {ROOT / line.removeprefix("--ignore=") for line in lines if line.startswith("--")}
    named = [ROOT / line for line in lines if not line.startswith("--")]
    found = [file for path in named for file in ([path] if path.is_file() else path.rglob("*.py"))]
    return sorted(set(found) - left_out)


def imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports when it is collected, up to a test that skips it."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if "importorskip(" in ast.unparse(statement).split("\n")[0]:
            return
        if isinstance(statement, ast.Import):
            yield from (one.name for one in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{one.name}" for one in statement.names)


def file_of(module: str) -> Path | None:
    """Return the file of a module of this repository that is not part of the package."""
    path = ROOT.joinpath(*module.split("."))
    found = [one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()]
    return found[0] if found else None


def test_they_import_nothing_else() -> None:
    """Also through what the tests share, and the benchmarks."""
    waiting, seen, foreign = core_tests(), set(), set()
    assert len(waiting) > 50
    while waiting:
        file = waiting.pop()
        seen.add(file)
        for module in imported(file):
            if module.split(".")[0] in ("tests", "benchmarks"):
                found = file_of(module)
                waiting += [found] if found and found not in seen else []
            elif module.split(".")[0] not in INSTALLED:
                foreign.add(f"{file.relative_to(ROOT)} imports {module}")

    assert foreign == set()
