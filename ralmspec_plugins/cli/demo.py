"""`ralmspec demo`: a handful of questions, answered plainly and speculatively, side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ralmspec_plugins import timeline
from ralmspec_plugins.cli import options
from ralmspec_plugins.cli.assemble import Style, Weights, default_backend
from ralmspec_plugins.cli.corpora import Corpus, docs_corpus, world_corpus
from ralmspec_plugins.cli.output import notes, on_terminal, screen, write_json
from ralmspec_plugins.cli.runs import PLAIN, SPECULATIVE
from ralmspec_plugins.cli.stage import Act, Result, Stage, check_acts_agree
from ralmspec_plugins.retrieval import KnowledgeBase, open_retriever

_LANES = 8  # as many round trips at once as a 50 ms store needs to be hidden here


def demo(
    docs: Annotated[
        bool, typer.Option("--docs", help="Ask about Python's own documentation instead.")
    ] = False,
    questions: Annotated[int, typer.Option(min=1, max=50, help="How many are asked.")] = 5,
    model: options.Model = None,
    latency: Annotated[
        float,
        typer.Option(
            parser=options.duration,
            metavar="TIME",
            help="The simulated remote store's round trip; 0 for the local store alone.",
        ),
    ] = 0.05,
    lanes: Annotated[
        int, typer.Option(min=1, help="Searches out at a time in the last act.")
    ] = _LANES,
    drawing: Annotated[
        Path, typer.Option("--timeline", help="Where the first question's timeline goes.")
    ] = Path("ralmspec-timeline.html"),
    threads: options.Threads = 1,
    json: options.Json = False,
) -> None:
    """Show that speculation writes the same, sooner: over a local store, then over a remote one."""
    timeline.check_path(drawing)
    console = None if json or not on_terminal() else screen()
    with notes().status("loading the model"):
        weights = Weights(model, Style(template="{prompt}"), threads)
    with notes().status("building the knowledge base"):
        corpus = docs_corpus(questions) if docs else world_corpus(questions)
        backend = default_backend()
        store = open_retriever(backend, corpus.passages)
    if console is not None:
        console.print(corpus.about)
    results = _play(corpus, weights, store, backend, latency, lanes, console)
    check_acts_agree(results, corpus.prompts)
    _draw(drawing, results[-1], corpus)
    if console is None:
        acts = [result.record() for result in results]
        record = {"passages": len(corpus.passages), "backend": backend, "equal": True}
        write_json({**record, "acts": acts, "timeline": str(drawing)})
        return
    console.print(
        "All answers are equal: texts, and sources with their scores, in every run.", style="green"
    )
    console.print(f"The first question's timeline is in {drawing}.", markup=False, soft_wrap=True)


def _play(
    corpus: Corpus,
    weights: Weights,
    store: KnowledgeBase,
    backend: str,
    latency_s: float,
    lanes: int,
    console: Console | None,
) -> list[Result]:
    """Play the acts in order."""
    acts = [Act(f"A local store ({backend}, k = 1, a search every 4 tokens)", 0.0, 1)]
    if latency_s:
        acts.append(Act("The same store far away, one round trip at a time", latency_s, 1))
    if latency_s and lanes > 1:
        acts.append(Act(f"The same store far away, {lanes} round trips at once", latency_s, lanes))
    stage = Stage(corpus, weights, console)
    return [stage.play(act, store) for act in acts]


def _draw(path: Path, result: Result, corpus: Corpus) -> None:
    runs = {mode: result.answers[mode][0].stats for mode in (SPECULATIVE, PLAIN)}
    timeline.write(path, runs, title=corpus.prompts[0].strip(), note=result.act.costs)
