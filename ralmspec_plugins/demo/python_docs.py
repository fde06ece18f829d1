"""Passages of the installed Python's own documentation, which is available on any machine."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

from ralmspec_plugins.retrieval.ingest import split_text
from ralmspec_plugins.types import Passage

_NO_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip"}
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def library_passages(library: Path) -> Iterator[Passage]:
    """Yield passages of all public docstrings in a folder; no code is imported or run."""
    seen: set[str] = set()
    for file in sorted(library.rglob("*.py")):
        module = _module(file.relative_to(library))
        if module is None:
            continue
        tree = _parsed(file)
        if tree is None:
            continue
        for name, title, text in _documented(tree, module):
            if name in seen:
                continue
            seen.add(name)
            pieces = split_text(text)
            for number, piece in enumerate(pieces, start=1):
                suffix = "" if len(pieces) == 1 else f"#{number:04d}"
                yield Passage(name + suffix, piece, title)


def _parsed(file: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of third-party code
            return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None  # not Python, such as templates


def _module(path: Path) -> str | None:
    """Return the name of a file's module, or `None` if it is not public.

    >>> _module(Path("json/__init__.py")), _module(Path("email/_policybase.py"))
    ('json', None)
    """
    parts = [*path.parts[:-1], path.stem]
    if parts[-1] == "__init__":
        parts.pop()
    if not parts or any(part.startswith("_") or part in _NO_LIBRARY for part in parts):
        return None
    return ".".join(parts) if all(part.isidentifier() for part in parts) else None


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str, str]]:
    """Return name, title and text of everything public with a docstring, methods included."""
    text = ast.get_docstring(tree)
    if text:
        yield module, module, text
    inside: list[tuple[str, ast.stmt]] = [(module, node) for node in tree.body]
    while inside:
        parent, node = inside.pop(0)
        if not isinstance(node, _Documented) or node.name.startswith("_"):
            continue
        name = f"{parent}.{node.name}"
        text = ast.get_docstring(node)
        if text:
            yield name, _title(name, node), text
        if isinstance(node, ast.ClassDef):
            inside += [(name, child) for child in node.body]


def _title(name: str, node: _Documented) -> str:
    return name if isinstance(node, ast.ClassDef) else f"{name}({ast.unparse(node.args)})"
