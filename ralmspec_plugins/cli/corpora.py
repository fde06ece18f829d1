"""What the demo asks about: the invented world, or the documentation of the standard library."""

import ast
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ralmspec_plugins.demo.world import DEMO_SEED, count_facts, make_world
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.records import Passage
from ralmspec_plugins.retrieval.ingest import split_text

QUESTIONS_SEED = 1
_NO_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip"}
_FAVOURITES = (
    "textwrap.wrap",
    "heapq.merge",
    "json.dumps",
    "shutil.copytree",
    "difflib.get_close_matches",
    "bisect.bisect_left",
    "statistics.median",
    "string.capwords",
    "glob.glob",
    "random.shuffle",
)
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages, questions about them, and how the answers are marked."""

    about: str
    passages: Sequence[Passage]
    prompts: Sequence[str]
    max_tokens: int
    facts: Callable[[int, str], tuple[int, int]] | None  # question and text to right, asked


def world_corpus(questions: int) -> Corpus:
    """Invent the demo's world."""
    world = make_world(DEMO_SEED)
    asked = world.questions(questions, QUESTIONS_SEED)

    def facts(number: int, text: str) -> tuple[int, int]:
        question = asked[number]
        count = count_facts(question.prompt + text, question, world)
        return count.right, count.asked

    passages = [Passage(told.id, told.text, told.title) for told in world.passages()]
    about = (
        f"An invented world of {len(passages):,} passages. Nothing in it can be known from "
        "elsewhere: every right fact was read from a passage that a search found."
    )
    return Corpus(about, passages, [question.prompt for question in asked], 192, facts)


def docs_corpus(questions: int) -> Corpus:
    """Read the documentation of the installed Python's standard library.

    Raises:
        InputError: its sources are not on this machine.
    """
    library = Path(sysconfig.get_path("stdlib"))
    passages = list(library_passages(library))
    if not passages:
        raise InputError(f"the standard library's sources are not in {library}")
    there = {passage.id.partition("#")[0] for passage in passages}
    names = [name for name in _FAVOURITES if name in there] + sorted(there)
    prompts = [f"Explain {name}.\n" for name in dict.fromkeys(names)]
    about = (
        f"The documentation of this Python's standard library: {len(passages):,} passages. The "
        "demo's own model knows the invented world's language only, so do not believe what it "
        "writes here; what counts is that both runs write the same."
    )
    return Corpus(about, passages, prompts[:questions], 128, None)


def library_passages(library: Path) -> Iterator[Passage]:
    """Make passages of all public docstrings below a folder; nothing is imported or run."""
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
            warnings.simplefilter("ignore")  # of what others wrote
            return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None  # templates and the like lie there too


def _module(path: Path) -> str | None:
    """Name a file's module, or `None` if it is no public one.

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
    """Give name, title and text of everything public with a docstring, methods included."""
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
