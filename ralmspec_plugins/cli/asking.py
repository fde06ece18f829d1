"""The questions of `ralmspec ask`, one after another: answered, compared, printed, drawn."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.rule import Rule

from ralmspec_plugins import timeline
from ralmspec_plugins.cli.assemble import added
from ralmspec_plugins.cli.output import (
    answer_record,
    complain,
    in_short,
    on_terminal,
    printable,
    screen,
    write_json,
)
from ralmspec_plugins.cli.runs import PLAIN, SPECULATIVE, answered, speed_up
from ralmspec_plugins.diagnosis import check_equal
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import InputError, RalmSpecError
from ralmspec_plugins.types import Answer, Request

_SOURCES_SHOWN = 5


def modes_of(*, plain: bool, compare: bool) -> tuple[str, ...]:
    """Say which runs these options ask for.

    Raises:
        BadParameter: they contradict each other.
    """
    if plain and compare:
        raise typer.BadParameter("--compare runs plainly too; give one of --plain and --compare")
    if compare:
        return PLAIN, SPECULATIVE
    return (PLAIN,) if plain else (SPECULATIVE,)


def read_questions(question: str | None, file: Path | None) -> list[str]:
    """Take the question, or read a file of questions.

    Raises:
        BadParameter: both or none was given.
        InputError: the file holds no questions.
    """
    if (question is None) == (file is None):
        raise typer.BadParameter("give either a question or --file")
    if question is not None:
        return [readable(question)]
    assert file is not None
    if str(file) != "-" and not file.is_file():
        raise InputError(f"there is no file {file}; --file takes questions, one a line")
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        questions = [_question(line) for line in lines] if file.suffix == ".jsonl" else lines
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no file of questions: {error!r}") from error
    if not questions:
        raise InputError(f"{file} holds no question; write one a line")
    return questions


def readable(question: str) -> str:
    """Refuse a question with bytes that are no UTF-8, which no model could read.

    Raises:
        InputError: it has some.
    """
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the question {question!r} is not UTF-8 text") from error
    return question


def _question(line: str) -> str:
    question = json.loads(line)["question"]
    if not isinstance(question, str):
        raise TypeError(f"a question must be a text, got {question!r}")
    return question


class Printer:
    """Shows answers: text as it is written on a terminal, otherwise an object a line."""

    def __init__(self, as_json: bool, *, many: bool) -> None:
        """Print for a person, unless JSON is wanted or nobody is there."""
        self.human = on_terminal() and not as_json
        self._many = many
        self._console: Console = screen()

    def begin(self, question: str, mode: str | None) -> None:
        """Announce a run where there is more than one."""
        if self.human and (self._many or mode):
            title = f"{question} [{mode}]" if mode else question
            self._console.print(Rule(title.replace("[", "\\["), align="left"))

    def piece(self, text: str) -> None:
        """Show text that stays."""
        if self.human:
            self._console.out(printable(text), end="", highlight=False)
            self._console.file.flush()

    def end(self, question: str, answer: Answer, mode: str) -> None:
        """Show what an answer rests on and what it took."""
        if not self.human:
            write_json(answer_record(question, answer, mode))
            return
        self._console.print("\n")
        for hit in answer.sources[:_SOURCES_SHOWN]:
            score = "" if hit.score is None else f"  {hit.score:.3f}"
            title = f"  {hit.passage.title}" if hit.passage.title else ""
            self._console.print(f"  {hit.passage.id}{title}{score}", style="dim", markup=False)
        if len(answer.sources) > _SOURCES_SHOWN:
            more = len(answer.sources) - _SOURCES_SHOWN
            self._console.print(f"  and {more} more sources", style="dim")
        self._console.print(in_short(answer.stats), style="cyan")

    def equal(self, plain: Answer, speculative: Answer) -> None:
        """Say that a comparison went well."""
        if self.human:
            faster = speed_up(plain.stats.wall_s, speculative.stats.wall_s)
            message = f"equal: text, and {len(plain.sources)} sources with their scores; {faster}"
            self._console.print(message, style="green")


class Asking:
    """Answers requests in order; one that fails does not stop the others."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        printer: Printer,
        drawing: Path | None,
        latency_s: float,
    ) -> None:
        """Ask these engines, by mode, each request."""
        self._engines = engines
        self._printer = printer
        self._drawing = drawing
        self._note = added(latency_s) if latency_s else ""

    def all(self, requests: Sequence[Request]) -> int:
        """Answer all requests, and count those that failed.

        Raises:
            RalmSpecError: the only request failed.
        """
        failures = 0
        for number, request in enumerate(requests, start=1):
            try:
                answers = self._one(request)
            except RalmSpecError as error:
                if len(requests) == 1:
                    raise
                failures += 1
                complain(f"question {number} ({request.prompt!r}): {error}")
                continue
            if self._drawing is not None:
                path = numbered(self._drawing, number) if len(requests) > 1 else self._drawing
                runs = {mode: answer.stats for mode, answer in answers.items()}
                timeline.write(path, runs, title=request.prompt.strip(), note=self._note)
        return failures

    def _one(self, request: Request) -> dict[str, Answer]:
        answers = {}
        for mode, engine in self._engines.items():
            self._printer.begin(request.prompt, mode if len(self._engines) > 1 else None)
            answers[mode] = answered(engine, request, self._printer.piece)
            self._printer.end(request.prompt, answers[mode], mode)
        if len(answers) > 1:
            check_equal(request.prompt, answers[PLAIN], answers[SPECULATIVE])
            self._printer.equal(answers[PLAIN], answers[SPECULATIVE])
        return answers


def numbered(path: Path, number: int) -> Path:
    """Put a number into a file's name.

    >>> str(numbered(Path("out.html"), 3))
    'out-3.html'
    """
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
