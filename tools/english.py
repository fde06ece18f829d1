"""List words that do not belong into technical prose: in docstrings, comments, messages and docs.

`make check` runs it. A word in backticks or in a block of code is code, and is not checked.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
CHECKED: Final = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/**/*.md",
    "ralmspec_plugins/**/*.py",
    "integrations/*_ralmspec/**/*.py",
)
EXEMPT: Final = (
    "ralmspec_plugins/demo/language.py",  # the sentences on which the demo's model was trained
    "ralmspec_plugins/demo/world.py",  # the same
    *(f"docs/{name}" for name in ("api/", "cli_options.md", "notebooks/", "results/")),  # copies
)
# Of the demo's prompts; a list of stop words; an author.
QUOTED: Final = re.compile(
    r"Tell the story|Hear of|hear of|Tell me the story|he she they his her|\bHe et al"
)

# What to write instead, by a regular expression of the word or phrase.
WORDS: Final = {
    r"nobody(?:'s)?|somebody(?:'s)?|anybody(?:'s)?|everybody(?:'s)?": "no caller, a caller, all",
    r"who(?:m|so)?ever": "a caller that, any caller",
    r"he|him|his|she|her|himself": "it, the caller",
    r"anew|once more": "again",
    r"lest": "so that ... not, to avoid",
    r"(?:go|goes|going|went|gone) on": "continue",
    r"tells?|told": "notify, report, return, show",
    r"hears?(?: of)?": "receive",
    r"what (?:comes|came|becomes|became) of": "the result of",
    r"(?:its|the) like": "similar",
    r"by hand": "manually",
    r"(?:take[ns]?|took|taking) (?:it )?for": "be mistaken for, be treated as",
    r"(?:let|lets|letting) (?:\w+ ){0,3}go": "release, shut down",
    r"(?:give|gives|given|gave|giving) up": "cancel, discard",
    r"at (?:its|the) door": "waiting for admission",
    r"side by side": "in parallel",
    r"black box(?:es)?": "opaque retriever, opaque object",
    r"(?:come|comes|came) to (?:an|its|their|this|that|the)": "reach, result in",
    r"for ever": "without a limit",
    r"(?:thrown|throws?) away": "discarded",
    r"speed-ups?": "speedup",
    r"foretold|foretells?": "predicted",
    r"beside": "in parallel with, next to",
    r"(?:hold|holds|held|holding) up": "block",
    r"passage pools?": "passage cache",
    r"errands?|desks?": "the name of the component",
    r"what is asked|was asked": "the query",
    r"(?:run|runs|ran|running) ahead": "run speculatively",
    r"(?:written|write|writes|writing|write) ahead": "generate speculatively",
    r"store far away|far-away store|far away": "remote store",
    r"(?:found|find|finds) out": "detect, determine",
    r"says? nothing|said nothing": "does not state",
    r"affairs?": "responsibility, part",
    r"sooner": "in less time, earlier",
    r"(?:DESIGN|STYLE|LAYOUT|NEXT)(?:\.md)?": "a page under docs/",
}
_FIRST: Final = re.compile(
    r"(?:Give|Gives|Say|Says|Tell|Hold|Take in|Do the same|Do what|Look at|Have|Let|Be|Know|Stand|"
    r"Hear|Bring|Go|Work out|Find out|See to|Nothing|Refuse)\b"
)
_PATTERN: Final = re.compile(
    "|".join(rf"(?P<w{at}>\b(?:{word})\b)" for at, word in enumerate(WORDS)), re.IGNORECASE
)
_UPPER: Final = re.compile(r"DESIGN|STYLE|LAYOUT|NEXT")
_CODE: Final = re.compile(
    r"(?m)^ +\w+:(?= )|``[^`]+``|`[^`\n]+`|\{[^{}]*\}|https?://\S+|\]\([^)]*\)"
)


class Finding(NamedTuple):
    """A word that does not belong into technical prose."""

    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.path}:{self.line}: {self.word!r}: {self.instead}"


def prose_of_python(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield each docstring, comment and message: its line, its text, and if it is a docstring."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and ast.get_docstring(node):
            docstrings.add(node.body[0].lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if " " in text.strip() and "<" not in text:
                yield node.lineno, text, node.lineno in docstrings
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def prose_of_markdown(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield each line outside of blocks of code and of tables that a script writes."""
    code = generated = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif line.startswith("<!--"):
            generated = not line.startswith("<!-- /")
        elif not code and not generated:
            yield number, line, False


def findings(path: str, source: str) -> Iterator[Finding]:
    """Yield what a file has to change."""
    prose = prose_of_python if path.endswith(".py") else prose_of_markdown
    for first, text, docstring in prose(source):
        if docstring and (match := _FIRST.match(text.lstrip())):
            yield Finding(path, first, match.group(), "the result, or what the call does")
        quiet = QUOTED.sub("_", text)
        quiet = re.sub(r"(?m)^\s*(?:>>>|\.\.\.) .*$", "", quiet)
        quiet = _CODE.sub(lambda code: re.sub(r"[^\n]", "_", code.group()), quiet)
        for match in _PATTERN.finditer(quiet):
            word = match.group()
            if _UPPER.fullmatch(word.removesuffix(".md").upper()) and not word[0:4].isupper():
                continue
            instead = list(WORDS.values())[int((match.lastgroup or "w0")[1:])]
            yield Finding(path, first + quiet[: match.start()].count("\n"), word, instead)


def checked_files() -> list[Path]:
    """Return the files to check, in order."""
    files = {file for pattern in CHECKED for file in ROOT.glob(pattern)}
    exempt = tuple(str(ROOT / folder) for folder in EXEMPT)
    return sorted(file for file in files if not str(file).startswith(exempt))


def all_findings() -> list[Finding]:
    """Return all findings in the checked files."""
    return [
        finding
        for file in checked_files()
        for finding in findings(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    found = all_findings()
    sys.stdout.writelines(f"{finding}\n" for finding in found)
    sys.exit(bool(found))
