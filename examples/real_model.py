"""A trained instruct model over a public corpus: task quality and speed, plain and speculative.

    pip install "ralmspec-plugins[cli,hf,bm25]" pyarrow
    python examples/real_model.py
    python examples/real_model.py --model meta-llama/Llama-3.2-1B-Instruct --latency 50ms
    python examples/real_model.py --model demo --corpus world   # nothing is downloaded

The model and SQuAD (2,067 passages of Wikipedia; questions with their answers) come from the
Hugging Face hub. Each question is answered twice, plainly and speculatively, with caches of its
own, and both answers are asserted equal: so the quality of both is the same number.

`--corpus` is "squad", "world" (the demo's invented one), or a folder with passages.jsonl (id,
title, text) and questions.jsonl (question, answers).
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from ralmspec_plugins import (
    Answer,
    Continuous,
    Engine,
    Interval,
    Passage,
    Request,
    Settings,
    open_retriever,
)
from ralmspec_plugins.cli.build import DEMO, at_distance, use_threads
from ralmspec_plugins.cli.options import duration
from ralmspec_plugins.cli.output import screen, spread, table
from ralmspec_plugins.demo import count_facts, make_world
from ralmspec_plugins.diagnosis import check_equal
from ralmspec_plugins.errors import InputError, RalmSpecError
from ralmspec_plugins.lm import HuggingFaceLM, PassageTemplate
from ralmspec_plugins.retrieval import read_passages

MODEL: Final = "Qwen/Qwen2.5-0.5B-Instruct"
SQUAD: Final = ("rajpurkar/squad", "plain_text/validation-00000-of-00001.parquet")
SYSTEM: Final = "Answer the question from the passage, in a few words."
MODES: Final = ("plain", "speculative")


@dataclass(frozen=True)
class Task:
    """A question, and the score of an answer to it: from 0 to 1, by the measure's name."""

    prompt: str
    score: Callable[[str], dict[str, float]]


@dataclass(frozen=True)
class Corpus:
    """Passages, questions about them, and how both are shown to a model."""

    name: str
    passages: Sequence[Passage]
    tasks: Sequence[Task]
    template: PassageTemplate | None = None


def words(text: str) -> list[str]:
    """Return the words that SQuAD compares: lower case, no punctuation, no articles.

    >>> words("The U.S. Army, in an attack!")
    ['us', 'army', 'in', 'attack']
    """
    bare = "".join(one for one in text.lower() if one not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def scores(text: str, answers: Sequence[str]) -> dict[str, float]:
    """Return exact match, F1 of the words, and whether an answer is contained in the text.

    >>> scores("It was the Denver Broncos.", ["Denver Broncos"])
    {'exact': 0.0, 'f1': 0.6666666666666666, 'contained': 1.0}
    """
    ours, theirs = words(text), [words(one) for one in answers]
    return {
        "exact": float(ours in theirs),
        "f1": max(f1(ours, one) for one in theirs),
        "contained": float(any(f" {' '.join(one)} " in f" {' '.join(ours)} " for one in theirs)),
    }


def f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the words."""
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def squad(questions: int) -> Corpus:
    """Return the validation part of SQuAD 1.1, with questions from all over it.

    Raises:
        InputError: it cannot be downloaded.
    """
    try:
        from huggingface_hub import hf_hub_download
        from pyarrow import parquet

        rows = parquet.read_table(hf_hub_download(*SQUAD, repo_type="dataset")).to_pylist()
    except (ImportError, OSError, ValueError) as error:
        raise InputError(
            f"SQuAD cannot be downloaded ({type(error).__name__}: {error}); --corpus takes a "
            "folder, or world"
        ) from error
    titles = dict.fromkeys((row["context"], row["title"]) for row in rows)
    passages = [Passage(f"squad-{at}", text, title) for at, (text, title) in enumerate(titles)]
    asked = rows[:: max(1, len(rows) // questions)][:questions]
    told = [(row["question"], row["answers"]["text"]) for row in asked]
    return Corpus("SQuAD 1.1, validation", passages, tasks(told))


def folder(path: Path, questions: int) -> Corpus:
    """Return the corpus of a folder.

    Raises:
        InputError: it lacks a file, or has no question with an answer.
    """
    file = path / "questions.jsonl"
    if not file.is_file():
        raise InputError(f"there is no {file}, with lines of a question and its answers")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    told = [(row["question"], row["answers"]) for row in rows if row["answers"]][:questions]
    if not told:
        raise InputError(f"{file} has no question with an answer")
    return Corpus(path.name, read_passages(path / "passages.jsonl"), tasks(told))


def tasks(told: Iterable[tuple[str, Sequence[str]]]) -> list[Task]:
    """Return questions that are scored by their answers."""
    return [Task(asked, lambda text, right=right: scores(text, right)) for asked, right in told]


def world(questions: int) -> Corpus:
    """Return the demo's invented world, whose stories state facts."""
    made = make_world(seed=7)
    passages = [Passage(one.id, one.text, one.title) for one in made.passages()]

    def scored(question: Any) -> Callable[[str], dict[str, float]]:
        def score(text: str) -> dict[str, float]:
            count = count_facts(text, question, made)
            return {"facts right": count.right / count.asked}

        return score

    asked = [Task(one.prompt, scored(one)) for one in made.questions(questions, seed=1)]
    return Corpus("the demo's invented world", passages, asked, PassageTemplate())


def corpus_of(name: str, questions: int) -> Corpus:
    """Return a corpus by its name, or that of a folder."""
    known = {"squad": squad, "world": world}
    return known[name](questions) if name in known else folder(Path(name), questions)


def template_for(tokenizer: Any) -> PassageTemplate:
    """Return how an instruct model is asked: by its chat template, if it has one."""
    if getattr(tokenizer, "chat_template", None):
        return PassageTemplate(chat="user", prompt=f"{SYSTEM}\n\n{{prompt}}")
    return PassageTemplate(prompt=f"{SYSTEM}\n\nQuestion: {{prompt}}\nAnswer:")


def compared(
    loaded: HuggingFaceLM,
    corpus: Corpus,
    *,
    latency_s: float,
    lanes: int,
    interval: int,
    max_tokens: int,
) -> dict[str, list[Answer]]:
    """Answer all questions in both modes, which take turns, and check that they are equal.

    Raises:
        UnequalError: two answers differ.
    """
    template = corpus.template or template_for(loaded.tokenizer)
    store = at_distance(open_retriever("bm25s", corpus.passages), latency_s)
    answers: dict[str, list[Answer]] = {mode: [] for mode in MODES}
    for number, task in enumerate(corpus.tasks):
        for mode in MODES if number % 2 else MODES[::-1]:
            lm = HuggingFaceLM(loaded.model, loaded.tokenizer, template=template)
            settings = Settings(speculate=mode == "speculative", schedule=Continuous(lanes=lanes))
            with Engine(Interval(lm, interval=interval), store, settings) as engine:
                answers[mode].append(engine.run(Request(prompt=task.prompt, max_tokens=max_tokens)))
        check_equal(task.prompt, *(answers[mode][-1] for mode in MODES))
    return answers


def summary(
    corpus: Corpus, answers: dict[str, list[Answer]], model: str, weights: int
) -> dict[str, Any]:
    """Return quality and speed of both modes."""
    record: dict[str, Any] = {"model": model, "weights": weights, "corpus": corpus.name}
    record |= {"passages": len(corpus.passages), "questions": len(corpus.tasks), "identical": True}
    for mode in MODES:
        texts = [one.text for one in answers[mode]]
        scored = [task.score(text) for task, text in zip(corpus.tasks, texts, strict=True)]
        quality = {name: sum(one[name] for one in scored) / len(scored) for name in scored[0]}
        times = [one.stats.wall_s for one in answers[mode]]
        record[mode] = {"quality": quality, "seconds": times, "texts": texts}
    plain = [one.stats for one in answers["plain"]]
    record["search_s"] = median(one.search_s / max(1, one.searches) for one in plain)
    record["step_s"] = median(one.write_s / max(1, one.segments) for one in plain)
    return record


def show(record: dict[str, Any]) -> None:
    """Print quality and speed as a table, then a headline."""
    console = screen()
    quality = list(record["plain"]["quality"])
    console.print(f"{record['model']} over {record['corpus']}", markup=False)
    made = table("", *quality, "time")
    for mode in MODES:
        cells = (f"{record[mode]['quality'][name]:.3f}" for name in quality)
        made.add_row(mode, *cells, f"{sum(record[mode]['seconds']):.1f} s")
    console.print(made)
    ratio = record["search_s"] / record["step_s"]
    faster = spread(*(record[mode]["seconds"] for mode in MODES))
    console.print(
        f"{record['questions']} questions, {record['weights']:,} weights, R/G {ratio:.2g}; "
        f"times as fast: {faster}. Identical: True",
        style="bold green",
        soft_wrap=True,
    )


def main(
    model: Annotated[str, typer.Option(help='A folder, a hub name, or "demo".')] = MODEL,
    corpus: Annotated[str, typer.Option(help="squad, world, or a folder.")] = "squad",
    questions: Annotated[int, typer.Option(min=1)] = 20,
    interval: Annotated[int, typer.Option(min=1, help="Tokens between two searches.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    latency: Annotated[
        float, typer.Option(parser=duration, metavar="TIME", help="Simulated, of a remote store.")
    ] = 0.0,
    lanes: Annotated[int, typer.Option(min=1, help="Searches in parallel.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="The model's.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of all answers and times, JSON.")] = None,
) -> None:
    """Compare plain and speculative answers of a trained model: quality, speed, equality."""
    try:
        chosen = corpus_of(corpus, questions)
        loaded = HuggingFaceLM.from_pretrained(use_threads(threads, model))
        options = {"interval": interval, "max_tokens": max_tokens, "lanes": lanes}
        answers = compared(loaded, chosen, latency_s=latency, **options)
    except RalmSpecError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    name = "the demo's own model" if model == DEMO else model
    record = summary(chosen, answers, name, loaded.model.num_parameters())
    record |= {**options, "added_latency_s": latency}
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(record)


if __name__ == "__main__":
    typer.run(main)
