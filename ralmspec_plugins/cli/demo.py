"""`ralmspec demo`: some questions, answered plainly and speculatively, in two columns."""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from ralmspec_plugins import timeline
from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.cli.options import PLAIN, SPECULATIVE
from ralmspec_plugins.config import Settings
from ralmspec_plugins.demo.corpora import Corpus, docs_corpus, world_corpus
from ralmspec_plugins.diagnosis import check_equal
from ralmspec_plugins.protocols import Workload
from ralmspec_plugins.retrieval import KnowledgeBase, open_retriever
from ralmspec_plugins.scheduling.schedules import Continuous
from ralmspec_plugins.types import Answer, Request, Stats
from ralmspec_plugins.workloads import Interval

_LANES = 8  # the round trips in parallel that hide a store's latency of 50 ms here
_REFRESH_S = 0.05  # a shorter interval would slow down the model
_REAL = "all costs are real: the model and the searches run on this machine"


@options.command
def demo(
    *,
    docs: bool = False,
    questions: Annotated[int, {"min": 1, "max": 50}] = 5,
    model: str | None = None,
    latency: options.Seconds = 0.05,
    lanes: options.Count = _LANES,
    drawing: Annotated[Path, {"name": "--timeline"}] = Path("ralmspec-timeline.html"),
    threads: options.OptionalCount = 1,
    json: bool = False,
) -> None:
    """Show that speculation returns equal answers in less time, with a local and a remote store.

    Options:
        docs: Ask about Python's own documentation instead.
        questions: Number of questions.
        model: A causal model's folder, or its name on the hub. (default: the demo's own)
        latency: Round trip of the simulated remote store; 0 for the local store only.
        lanes: Searches in parallel in the last part.
        drawing: File of the first question's timeline.
        threads: The model's threads.
        json: JSON on stdout, and nothing else.
    """
    timeline.check_path(drawing)
    console = Console(quiet=json, highlight=False)
    with output.notes().status("loading the model"):
        weights = build.Weights(model, threads, template="{prompt}")
    with output.notes().status("building the knowledge base"):
        corpus = docs_corpus(questions) if docs else world_corpus(questions)
        backend = build.default_backend()
        store = open_retriever(backend, corpus.passages)
    console.print(corpus.about)
    acts = [Act(f"A local store ({backend}, k = 1, a search every 4 tokens)", 0.0, 1)]
    if latency:
        acts.append(Act("The same store, remote, one round trip at a time", latency, 1))
    if latency and lanes > 1:
        acts.append(Act(f"The same store, remote, {lanes} round trips in parallel", latency, lanes))
    for act in acts:
        act.play(corpus, weights, store, console)
        for prompt, *both in zip(
            corpus.prompts, acts[0].answers[PLAIN], act.answers[PLAIN], strict=False
        ):
            check_equal(prompt, *both)  # a store's latency changes only the time
    runs = {mode: acts[-1].answers[mode][0].stats for mode in (SPECULATIVE, PLAIN)}
    timeline.write(drawing, runs, title=corpus.prompts[0].strip(), note=acts[-1].costs)
    if json:
        record = {"passages": len(corpus.passages), "backend": backend, "equal": True}
        told = [act.record() for act in acts]
        output.write_json({**record, "acts": told, "timeline": str(drawing)})
    console.print(
        "All answers are equal: texts, and sources with their scores, in every run.", style="green"
    )
    console.print(f"The first question's timeline is in {drawing}.", markup=False, soft_wrap=True)


@dataclass(slots=True)
class Act:
    """The store with one latency and number of lanes, and the results of its runs."""

    title: str
    latency_s: float
    lanes: int
    answers: dict[str, list[Answer]] = field(default_factory=dict)  # by mode
    right: dict[str, int] = field(default_factory=dict)  # facts, by mode
    asked: int = 0  # number of facts; 0 if they are not counted

    @property
    def costs(self) -> str:
        """Return which costs are real."""
        return (
            f"{build.added(self.latency_s)}; all other costs are real" if self.latency_s else _REAL
        )

    def play(
        self, corpus: Corpus, weights: build.Weights, store: KnowledgeBase, console: Console
    ) -> None:
        """Answer all questions in both modes, and check that the answers are equal.

        Raises:
            UnequalError: they differ.
        """
        console.print(Text(f"\n{self.title}", style="bold"))
        console.print(Text(f"({self.costs})", style="yellow"))
        retriever = build.at_distance(store, self.latency_s, said=not console.quiet)

        def workload(mode: str) -> Workload[Any]:
            return Interval(weights.language_model(mode), interval=4, query_tokens=32)

        self.answers = {PLAIN: [], SPECULATIVE: []}
        settings = Settings(schedule=Continuous(lanes=self.lanes))
        with build.engines((PLAIN, SPECULATIVE), workload, retriever, settings) as opened:
            for number, prompt in enumerate(corpus.prompts):
                request = Request(prompt=prompt, max_tokens=corpus.max_tokens)
                with _Panels(prompt.strip(), console) as panels:
                    for mode, engine in opened.items():
                        answer = build.answered(engine, request, partial(panels.write, mode))
                        panels.done(mode, answer.stats)
                        self.answers[mode].append(answer)
                check_equal(prompt, *(self.answers[mode][-1] for mode in opened))
                self._mark(corpus, number)
        console.print(self._table())

    def _mark(self, corpus: Corpus, number: int) -> None:
        if corpus.facts is not None:
            for mode, answers in self.answers.items():
                right, asked = corpus.facts(number, answers[-1].text)
                self.right[mode] = self.right.get(mode, 0) + right
            self.asked += asked

    def _total(self, mode: str, name: str) -> Any:
        return sum(getattr(answer.stats, name) for answer in self.answers[mode])

    def _table(self) -> Table:
        facts = ["facts right"] if self.asked else []
        columns = (Column(no_wrap=True), "time", "searches", "round trips", "guesses right")
        table = Table(*columns, *facts, "as fast")
        for mode in self.answers:
            guesses, time_s = self._total(mode, "guesses"), self._total(mode, "wall_s")
            row = [mode, output.seconds(time_s)]
            row += [str(self._total(mode, name)) for name in ("queries", "searches")]
            row.append(f"{self._total(mode, 'accepted')} of {guesses}" if guesses else "-")
            if self.asked:
                row.append(f"{self.right[mode]} of {self.asked}")
            table.add_row(*row, f"{self._total(PLAIN, 'wall_s') / time_s:.2f} x")
        return table

    def record(self) -> dict[str, Any]:
        """Return all statistics."""
        return {
            "act": self.title,
            "added_latency_s": self.latency_s,
            "lanes": self.lanes,
            "seconds": {mode: self._total(mode, "wall_s") for mode in self.answers},
            "facts_right": self.right or None,
            "facts_asked": self.asked or None,
            "answers": [answer.text for answer in self.answers[PLAIN]],
            "stats": {
                mode: [output.stats_record(answer.stats) for answer in answers]
                for mode, answers in self.answers.items()
            },
        }


class _Panels:
    """Two streamed texts in two columns; a pipe gets the final state."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._texts = {PLAIN: "", SPECULATIVE: ""}
        self._notes = {PLAIN: "", SPECULATIVE: ""}
        self._drawn_s = 0.0
        self._live = Live(self._drawing(), console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._draw()
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.line()

    def write(self, mode: str, piece: str) -> None:
        self._texts[mode] += piece
        if time.monotonic() - self._drawn_s > _REFRESH_S:
            self._draw()

    def done(self, mode: str, stats: Stats) -> None:
        note = f"{output.seconds(stats.wall_s)}, {stats.searches} trips"
        self._notes[mode] = f"{note}, {output.accepted(stats)} right" if stats.guesses else note
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._drawing(), refresh=True)
        self._drawn_s = time.monotonic()

    def _drawing(self) -> Group:
        grid = Table.grid(expand=True)
        panels = []
        for mode, text in self._texts.items():
            shown = Text(output.printable(text).strip())
            panels.append(Panel(shown, title=mode, subtitle=Text(self._notes[mode])))
            grid.add_column(ratio=1)
        grid.add_row(*panels)
        return Group(Text(self._title, style="bold cyan"), grid)
