"""`ralmspec demo`: some questions, answered plainly and speculatively, and compared."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
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
_REAL = "all costs are real"


@options.command
def demo(
    *,
    docs: bool = False,
    questions: Annotated[int, {"min": 1, "max": 50}] = 5,
    model: str = build.DEMO,
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
        model: A causal model's folder, or its name on the hub; "demo" is the demo's own.
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
    asked = f"{output.plural(len(corpus.prompts), 'question')}, a search every 4 tokens ({backend})"
    console.print(f"{corpus.about} {asked}, each answered plainly and speculatively.")
    acts = [Act("local", 0.0, 1)]
    if latency:
        away = f"{1000 * latency:g} ms away"
        acts.append(Act(away, latency, 1))
        if lanes > 1:
            acts.append(Act(f"{away}, {lanes} at once", latency, lanes))
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
    _sum_up(acts, console)
    console.print(f"What happened when: {drawing}", markup=False, soft_wrap=True)


def _sum_up(acts: Sequence["Act"], console: Console) -> None:
    """Print the first answer, a row for each act, and the headline."""
    last = acts[-1]
    first = output.printable(last.answers[SPECULATIVE][0].text).strip()
    console.print(Text("\nThe first answer, the same in every run:", style="bold"))
    console.print(Text(first), "")
    table = output.table("", PLAIN, SPECULATIVE, "times as fast")
    for act in acts:
        times = (output.seconds(sum(act.seconds(mode))) for mode in (PLAIN, SPECULATIVE))
        table.add_row(act.title, *times, act.faster())
    console.print(table)
    if last.asked:
        counted = f"{last.right[SPECULATIVE]} of {last.asked}"
        console.print(f"Facts right, each read from a passage: {counted}, in every run.")
    plain, fast = (output.seconds(sum(last.seconds(mode))) for mode in (PLAIN, SPECULATIVE))
    wait = " (simulated wait)" if last.latency_s else ""
    console.print(
        f"Store {last.title}{wait}: plain {plain}, speculative {fast}; times as fast: "
        f"{last.faster()}. "
        "Identical: True (texts, and sources with their scores, in every run).",
        style="bold green",
        soft_wrap=True,
    )


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
        heading = Text(f"\nStore {self.title}", style="bold")
        console.print(heading.append(f" ({self.costs})", style="not bold yellow"), soft_wrap=True)
        retriever = build.at_distance(store, self.latency_s, said=not console.quiet)

        def workload(mode: str) -> Workload[Any]:
            return Interval(weights.language_model(mode), interval=4, query_tokens=32)

        self.answers = {PLAIN: [], SPECULATIVE: []}
        settings = Settings(schedule=Continuous(lanes=self.lanes))
        with build.engines((PLAIN, SPECULATIVE), workload, retriever, settings) as opened:
            for number, prompt in enumerate(corpus.prompts):
                request = Request(prompt=prompt, max_tokens=corpus.max_tokens)
                turns = [PLAIN, SPECULATIVE] if number % 2 else [SPECULATIVE, PLAIN]
                with _Panels(prompt.strip(), console) as panels:
                    for mode in turns:  # neither always follows the other
                        show = partial(panels.write, mode)
                        answer = build.answered(opened[mode], request, show)
                        panels.done(mode, answer.stats)
                        self.answers[mode].append(answer)
                check_equal(prompt, *(self.answers[mode][-1] for mode in opened))
                self._mark(corpus, number)
                console.print(self._line(prompt), soft_wrap=True)

    def _line(self, prompt: str) -> Text:
        """Return what the last question took."""
        plain, fast = (self.answers[mode][-1].stats for mode in (PLAIN, SPECULATIVE))
        told = f"plain {output.seconds(plain.wall_s)}, speculative {output.seconds(fast.wall_s)}"
        guesses = f"guesses right: {output.accepted(fast)}" if fast.guesses else "no guesses"
        return Text(f"  {prompt.strip()} {told}, {guesses}")

    def _mark(self, corpus: Corpus, number: int) -> None:
        if corpus.facts is not None:
            for mode, answers in self.answers.items():
                right, asked = corpus.facts(number, answers[-1].text)
                self.right[mode] = self.right.get(mode, 0) + right
            self.asked += asked

    def seconds(self, mode: str) -> list[float]:
        """Return the time of each question."""
        return [answer.stats.wall_s for answer in self.answers[mode]]

    def faster(self) -> str:
        """Return how many times as fast all questions were, with the least and the most of one."""
        guesses = sum(answer.stats.guesses for answer in self.answers[SPECULATIVE])
        return output.spread(self.seconds(PLAIN), self.seconds(SPECULATIVE), same=not guesses)

    def record(self) -> dict[str, Any]:
        """Return all statistics."""
        return {
            "act": self.title,
            "added_latency_s": self.latency_s,
            "lanes": self.lanes,
            "seconds": {mode: sum(self.seconds(mode)) for mode in self.answers},
            "facts_right": self.right or None,
            "facts_asked": self.asked or None,
            "answers": [answer.text for answer in self.answers[PLAIN]],
            "stats": {
                mode: [output.stats_record(answer.stats) for answer in answers]
                for mode, answers in self.answers.items()
            },
        }


class _Panels:
    """Two streamed texts in two columns while they are generated, on a terminal."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._texts = {PLAIN: "", SPECULATIVE: ""}
        self._notes = {PLAIN: "", SPECULATIVE: ""}
        self._drawn_s = 0.0
        self._live = Live(self._drawing(), console=console, auto_refresh=False, transient=True)
        self._shown = console.is_terminal

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._shown:
            self._live.stop()

    def write(self, mode: str, piece: str) -> None:
        self._texts[mode] += piece
        if time.monotonic() - self._drawn_s > _REFRESH_S:
            self._draw()

    def done(self, mode: str, stats: Stats) -> None:
        note = f"{output.seconds(stats.wall_s)}, {stats.searches} trips"
        self._notes[mode] = f"{note}, {output.accepted(stats)} right" if stats.guesses else note
        self._draw()

    def _draw(self) -> None:
        if self._shown:
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
