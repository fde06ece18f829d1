"""Answers of requests: asked one after the other, printed as text or as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.rule import Rule
from rich.text import Text

from ralmspec_plugins import timeline
from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.diagnosis import check_equal
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.types import Answer, Request

_SOURCES_SHOWN = 5


class Printer:
    """Prints answers: streamed text on a terminal, otherwise one JSON object per line."""

    def __init__(self, as_json: bool, *, many: bool) -> None:
        """Print text on a terminal; JSON if requested, or for a pipe."""
        self.human = not output.wants_json(as_json)
        self._many = many
        self.console = output.screen()

    def begin(self, question: str, mode: str | None) -> None:
        """Print the title of a run, if there are several."""
        if self.human and (self._many or mode):
            title = f"{question} [{mode}]" if mode else question
            self.console.print(Rule(title.replace("[", "\\["), align="left"))

    def piece(self, text: str) -> None:
        """Print settled text."""
        if self.human:
            self.console.out(output.printable(text), end="", highlight=False)
            self.console.file.flush()

    def end(self, question: str, answer: Answer, mode: str) -> None:
        """Print the sources and the statistics of an answer."""
        if not self.human:
            record = self.record(question, answer)
            output.write_json({**record, "mode": mode, "stats": output.stats_record(answer.stats)})
            return
        self.console.print("\n")
        self.summary(answer)

    def record(self, question: str, answer: Answer) -> dict[str, Any]:
        """Return an answer with its sources in order of use."""
        sources = [
            {"id": hit.passage.id, "title": hit.passage.title, "score": hit.score}
            | {"text": hit.passage.text}
            for hit in answer.sources
        ]
        return {"question": question, "answer": answer.text, "sources": sources}

    def summary(self, answer: Answer) -> None:
        """Print some sources, and the statistics."""
        shown, all_of = answer.sources[:_SOURCES_SHOWN], len(answer.sources)
        if shown:
            more = f", the first {len(shown)}" if len(shown) < all_of else ""
            table = output.table("passage", "title", "score", title=f"{all_of} sources{more}")
            for hit in shown:
                score = "" if hit.score is None else f"{hit.score:.3f}"
                cells = (hit.passage.id, hit.passage.title, score)
                table.add_row(*(Text(output.printable(one)) for one in cells))
            self.console.print(table)
        self.console.print(output.in_short(answer.stats), style="cyan")

    def equal(self, plain: Answer, speculative: Answer) -> None:
        """Print that a comparison found no difference, and what both runs took."""
        if self.human:
            self.console.print(output.runs_table({"plain": plain, "speculative": speculative}))
            faster = output.speed_up(plain.stats.wall_s, speculative.stats.wall_s)
            self.console.print(f"equal: {self.compared(plain)}; {faster}", style="green")

    def compared(self, answer: Answer) -> str:
        """Return a description of the compared values."""
        return f"text, and {len(answer.sources)} sources with their scores"


def ask_all(
    engines: Mapping[str, Engine],
    requests: Sequence[Request],
    printer: Printer,
    drawing: Path | None,
    note: str = "",
) -> None:
    """Answer requests in order, by each engine; one that fails does not stop the others.

    Args:
        engines: by mode.
        requests: the requests.
        printer: prints the answers.
        drawing: the timeline's file; with several requests, numbered.
        note: a note in the timeline.

    Raises:
        RalmSpecError: the only request failed.
        Exit: one of several failed.
    """
    failed = False
    for number, request in enumerate(requests, start=1):
        try:
            answers = _answers(engines, request, printer)
        except RalmSpecError as error:
            if len(requests) == 1:
                raise
            failed = True
            output.complain(f"question {number} ({request.prompt!r}): {error}")
            continue
        if drawing is not None:
            path = numbered(drawing, number) if len(requests) > 1 else drawing
            runs = {mode: answer.stats for mode, answer in answers.items()}
            timeline.write(path, runs, title=request.prompt.strip(), note=note)
    if failed:
        raise typer.Exit(1)


def _answers(
    engines: Mapping[str, Engine], request: Request, printer: Printer
) -> dict[str, Answer]:
    answers = {}
    for mode, engine in engines.items():
        printer.begin(request.prompt, mode if len(engines) > 1 else None)
        answers[mode] = build.answered(engine, request, printer.piece)
        printer.end(request.prompt, answers[mode], mode)
    if len(answers) > 1:
        check_equal(request.prompt, answers[options.PLAIN], answers[options.SPECULATIVE])
        printer.equal(answers[options.PLAIN], answers[options.SPECULATIVE])
    return answers


def numbered(path: Path, number: int) -> Path:
    """Return a path with a number in the file's name.

    >>> str(numbered(Path("out.html"), 3))
    'out-3.html'
    """
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
