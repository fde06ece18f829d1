"""The demo's stage: both runs of each question writing side by side, and a table at the end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ralmspec_plugins.cli.assemble import Weights, added, at_distance, make_workload
from ralmspec_plugins.cli.corpora import Corpus
from ralmspec_plugins.cli.output import accepted, printable, seconds, stats_record
from ralmspec_plugins.cli.runs import PLAIN, SPECULATIVE, answered, engines
from ralmspec_plugins.config import Settings
from ralmspec_plugins.diagnosis import check_equal
from ralmspec_plugins.retrieval import KnowledgeBase
from ralmspec_plugins.scheduling.schedules import Continuous
from ralmspec_plugins.types import Answer, Request, Stats

_REFRESH_S = 0.05  # drawing more often would take time from the model


@dataclass(frozen=True, slots=True)
class Act:
    """One way of having the same store: here, or at a simulated distance."""

    title: str
    latency_s: float
    lanes: int

    @property
    def costs(self) -> str:
        """Say what is real."""
        if self.latency_s:
            return f"{added(self.latency_s)}; all other costs are real"
        return "all costs are real: the model and the searches run on this machine"


@dataclass(slots=True)
class Result:
    """What came of an act."""

    act: Act
    answers: dict[str, list[Answer]] = field(default_factory=dict)  # by mode
    right: dict[str, int] = field(default_factory=dict)
    asked: int = 0  # facts; 0 where they are not counted

    def total_s(self, mode: str) -> float:
        """Give the time of all questions together."""
        return sum(answer.stats.wall_s for answer in self.answers[mode])

    def total(self, mode: str, name: str) -> int:
        """Add a count up over all questions."""
        return sum(getattr(answer.stats, name) for answer in self.answers[mode])

    def record(self) -> dict[str, Any]:
        """Give all numbers, for machines."""
        return {
            "act": self.act.title,
            "added_latency_s": self.act.latency_s,
            "lanes": self.act.lanes,
            "seconds": {mode: self.total_s(mode) for mode in self.answers},
            "facts_right": self.right or None,
            "facts_asked": self.asked or None,
            "answers": [answer.text for answer in self.answers[PLAIN]],
            "stats": {
                mode: [stats_record(answer.stats) for answer in answers]
                for mode, answers in self.answers.items()
            },
        }


class Stage:
    """Plays acts; silent where nobody watches."""

    def __init__(self, corpus: Corpus, weights: Weights, console: Console | None) -> None:
        """Ask this corpus's questions, on this console."""
        self._corpus = corpus
        self._weights = weights
        self._console = console

    def play(self, act: Act, store: KnowledgeBase) -> Result:
        """Answer all questions both ways, and check that they are the same.

        Raises:
            UnequalError: they are not.
        """
        corpus = self._corpus
        self._say(Text(f"\n{act.title}", style="bold"), Text(f"({act.costs})", style="yellow"))
        settings = Settings(schedule=Continuous(lanes=act.lanes))
        requests = [Request(prompt=text, max_tokens=corpus.max_tokens) for text in corpus.prompts]
        result = Result(act, {PLAIN: [], SPECULATIVE: []})
        retriever = at_distance(store, act.latency_s, said=self._console is not None)

        def workload() -> Any:
            return make_workload("interval", self._weights.language_model(), 4, 32)

        with engines((PLAIN, SPECULATIVE), workload, retriever, settings) as opened:
            for number, request in enumerate(requests):
                with _Panels(request.prompt.strip(), self._console) as panels:
                    for mode, engine in opened.items():
                        answer = answered(engine, request, panels.writer(mode))
                        panels.done(mode, _in_brief(answer.stats))
                        result.answers[mode].append(answer)
                check_equal(request.prompt, *(result.answers[mode][-1] for mode in opened))
                self._mark(result, number)
        self._say(table(result))
        return result

    def _mark(self, result: Result, number: int) -> None:
        if self._corpus.facts is None:
            return
        asked = 0
        for mode, answers in result.answers.items():
            right, asked = self._corpus.facts(number, answers[-1].text)
            result.right[mode] = result.right.get(mode, 0) + right
        result.asked += asked

    def _say(self, *things: Any) -> None:
        if self._console is not None:
            for thing in things:
                self._console.print(thing)


def _in_brief(stats: Stats) -> str:
    brief = f"{seconds(stats.wall_s)}, {stats.searches} round trips"
    return f"{brief}, {accepted(stats)} right" if stats.guesses else brief


class _Panels:
    """Two texts growing side by side."""

    def __init__(self, title: str, console: Console | None) -> None:
        self._title = title
        self._texts = {PLAIN: "", SPECULATIVE: ""}
        self._notes = {PLAIN: "", SPECULATIVE: ""}
        self._drawn_s = 0.0
        self._live = Live(self._drawing(), console=console, auto_refresh=False) if console else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._live is not None:
            self._draw()
            self._live.stop()

    def writer(self, mode: str) -> Callable[[str], None]:
        """Give what takes this run's pieces."""

        def write(piece: str) -> None:
            self._texts[mode] += piece
            if self._live is not None and time.monotonic() - self._drawn_s > _REFRESH_S:
                self._draw()

        return write

    def done(self, mode: str, note: str) -> None:
        """Show what a run took."""
        self._notes[mode] = note
        if self._live is not None:
            self._draw()

    def _draw(self) -> None:
        assert self._live is not None
        self._live.update(self._drawing(), refresh=True)
        self._drawn_s = time.monotonic()

    def _drawing(self) -> Group:
        grid = Table.grid(expand=True)
        for _ in self._texts:
            grid.add_column(ratio=1)
        grid.add_row(
            *(
                Panel(Text(printable(text).strip()), title=mode, subtitle=Text(self._notes[mode]))
                for mode, text in self._texts.items()
            )
        )
        return Group(Text(self._title, style="bold cyan"), grid)


def table(result: Result) -> Table:
    """Sum an act up."""
    columns = ["", "time", "searches", "round trips", "guesses right"]
    drawn = Table(*columns, *(["facts right"] if result.asked else []), "as fast")
    for mode in result.answers:
        guesses = result.total(mode, "guesses")
        row = [
            mode,
            seconds(result.total_s(mode)),
            str(result.total(mode, "queries")),
            str(result.total(mode, "searches")),
            f"{result.total(mode, 'accepted')} of {guesses}" if guesses else "-",
        ]
        if result.asked:
            row.append(f"{result.right[mode]} of {result.asked}")
        drawn.add_row(*row, f"{result.total_s(PLAIN) / result.total_s(mode):.2f} x")
    return drawn


def check_acts_agree(results: Sequence[Result], prompts: Sequence[str]) -> None:
    """Check that the distance of a store changed nothing but the time.

    Raises:
        UnequalError: two acts gave different answers.
    """
    for later in results[1:]:
        pairs = zip(results[0].answers[PLAIN], later.answers[PLAIN], strict=True)
        for prompt, (first, second) in zip(prompts, pairs, strict=False):
            check_equal(prompt, first, second)
