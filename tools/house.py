"""Measure the layout of the code: sizes, imports, circles, and what one warm request runs through.

    python tools/house.py [--root FOLDER] [--json]

Counts cover what the wheel ships. A warm request is the second of two equal ones; its own calls
are calls of functions of this project, in every thread, seen by `sys.setprofile`.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "core": Path("ralmspec_plugins"),
    "langchain": Path("integrations/langchain_ralmspec"),
    "llama_index": Path("integrations/llama_index_ralmspec"),
}
Graph: TypeAlias = dict[str, set[str]]  # module -> first-party modules that it imports

PROFILE = """
import sys, threading, json
{prepare}
seen, calls = set(), 0
def profile(frame, event, argument):
    global calls
    name = frame.f_code.co_filename
    if event == "call" and any(part in name for part in {folders!r}):
        calls += 1
        seen.add(name)
ask(1)
threading.setprofile_all_threads(profile) if sys.version_info >= (3, 12) else None
threading.setprofile(profile)
sys.setprofile(profile)
ask(2)
sys.setprofile(None)
print(json.dumps([len(seen), calls]))
"""
REQUESTS = {
    "core": """
import ralmspec_plugins
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
engine = ralmspec_plugins.Engine(EchoWorkload(), WordRetriever(["red fox", "blue whale"]))
def ask(_):
    assert engine.run("whale red").text == "blue whale\\nred fox"
""",
    "langchain": """
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListLLM
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeRAG
store = InMemoryVectorStore.from_texts(["red fox"], DeterministicFakeEmbedding(size=8))
llm = FakeListLLM(responses=["It is red."])
rag = SpeculativeRAG.from_llm(llm, store.as_retriever(), workload="one_shot")
def ask(number):
    assert rag.invoke(f"What colour is fox {number}?")["answer"] == "It is red."
""",
    "llama_index": """
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from llama_index_ralmspec import SpeculativeQueryEngine
index = VectorStoreIndex([TextNode(text="The fox is red.")], embed_model=MockEmbedding(8))
engine = SpeculativeQueryEngine.from_index(
    index, llm=MockLLM(max_tokens=2), workload="one_shot"
)
def ask(number):
    assert str(engine.query(f"What colour is fox {number}?")) == "text text"
""",
}


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measured(options.root.resolve())
    if options.json:
        print(json.dumps(figures, indent=2))
        return 0
    for name, value in figures.items():
        print(f"{name:52} {value}")
    return 0


def measured(root: Path) -> dict[str, object]:
    """Give all figures by their names."""
    files = {name: sorted((root / part).rglob("*.py")) for name, part in PACKAGES.items()}
    trees = {
        module_name(root, file): ast.parse(file.read_text())
        for part in files.values()
        for file in part
    }
    graph = import_graph(trees)
    figures: dict[str, object] = {
        "lines in the wheel": sum(lines(file) for part in files.values() for file in part),
        "modules in the wheel": len(trees),
        "modules of the core's root": len(list((root / PACKAGES["core"]).glob("*.py"))),
    }
    for name, part in PACKAGES.items():
        own = [module for module in trees if module.partition(".")[0] == part.name]
        figures[f"lines, modules: {name}"] = (
            f"{sum(lines(file) for file in files[name])}, {len(own)}"
        )
        mean = sum(len(graph[module]) for module in own) / len(own)
        figures[f"first-party imports a module: {name}"] = round(mean, 2)
    doubled = {name: doubled_classes(trees, part.name) for name, part in PACKAGES.items()}
    figures["class names defined more than once in a package"] = sum(map(len, doubled.values()))
    figures["  which"] = ", ".join(sorted({kind for kinds in doubled.values() for kind in kinds}))
    circles = strongly_connected(graph)
    figures["circles of imports"] = len(circles)
    figures["  which "] = "; ".join(" ".join(sorted(circle)) for circle in circles)
    lengths = sorted(length for tree in trees.values() for length in function_lengths(tree))
    figures["functions, p90 of their lines"] = lengths[int(0.9 * len(lengths))]
    for name in PACKAGES:
        entered, calls = warm_request(root, name)
        figures[f"warm request, {name}: modules entered"] = entered
        figures[f"warm request, {name}: own calls"] = calls
    return figures


def lines(file: Path) -> int:
    """Count a file's lines."""
    return len(file.read_text().splitlines())


def module_name(root: Path, file: Path) -> str:
    """Give a module's dotted name.

    >>> module_name(Path("/r"), Path("/r/integrations/langchain_ralmspec/stores/__init__.py"))
    'langchain_ralmspec.stores'
    """
    parts = file.relative_to(root).with_suffix("").parts
    parts = parts[1:] if parts[0] == "integrations" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(trees: dict[str, ast.Module]) -> Graph:
    """Give each module's first-party imports, also those inside functions."""
    graph: Graph = {}
    for name, tree in trees.items():
        found = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in trees else node.module)
        graph[name] = {module for module in found if module in trees and module != name}
    return graph


def doubled_classes(trees: dict[str, ast.Module], package: str) -> list[str]:
    """Give the class names that a package defines in more than one place."""
    counts = Counter(
        node.name
        for module, tree in trees.items()
        if module.partition(".")[0] == package
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    return [name for name, count in counts.items() if count > 1]


def function_lengths(tree: ast.Module) -> Iterator[int]:
    """Count the lines of each function, its decorators and docstring left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            documented = (
                node.body[0].end_lineno - node.body[0].lineno + 1 if body is not node.body else 0
            )  # type: ignore[operator]
            yield node.end_lineno - node.lineno + 1 - documented  # type: ignore[operator]


def strongly_connected(graph: Graph) -> list[set[str]]:
    """Give the sets of modules that import each other in a circle (Kosaraju).

    >>> strongly_connected({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [{"a", "b"}]
    True
    """
    order: list[str] = []
    seen: set[str] = set()
    for module in graph:
        _walk(graph, module, seen, order)
    reverse: Graph = {module: set() for module in graph}
    for module, imported in graph.items():
        for other in imported:
            reverse[other].add(module)
    circles, seen = [], set()
    for module in reversed(order):
        group: list[str] = []
        _walk(reverse, module, seen, group)
        if len(group) > 1:
            circles.append(set(group))
    return circles


def _walk(graph: Graph, start: str, seen: set[str], order: list[str]) -> None:
    if start in seen:
        return
    seen.add(start)
    stack = [(start, iter(sorted(graph[start])))]
    while stack:
        module, following = stack[-1]
        for other in following:
            if other not in seen:
                seen.add(other)
                stack.append((other, iter(sorted(graph[other]))))
                break
        else:
            stack.pop()
            order.append(module)


def warm_request(root: Path, name: str) -> Sequence[object]:
    """Count the modules that a warm request enters, and its calls of this project's functions."""
    folders = [f"{root / part}{os.sep}" for part in PACKAGES.values()]
    code = PROFILE.format(prepare=REQUESTS[name], folders=folders)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'integrations'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        return (f"not measured: {run.stderr.strip().splitlines()[-1]}", "")
    counted: list[int] = json.loads(run.stdout.splitlines()[-1])
    return counted


if __name__ == "__main__":
    sys.exit(main())
