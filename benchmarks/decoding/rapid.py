"""`python -m benchmarks rapid`: drafts of a retrieved part of a long context, by its length."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any, Final

import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.decoding.journal import Journal
from benchmarks.decoding.rapid_rule import deviations
from benchmarks.decoding.rapid_simulated import simulated
from benchmarks.decoding.rapid_trained import Plan, measure_trained
from benchmarks.decoding.rapid_ways import (
    LENGTHS,
    RETRIEVED,
    ROOM,
    UNCUT,
    WAYS,
    WHOLE,
    DraftedWay,
    PlainWay,
    WatchedDrafter,
    bound,
    cells,
    step_costs,
)
from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding import DraftContext, Effort
from ralmspec_plugins.lm.sampling import uniform
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.testing.models import tiny_tokenizer
from ralmspec_plugins.types import Passage, Request

RATES: Final = (0.6, 0.75, 0.85)  # the paper's: plain speculation from 60 %, RAPID to 85 %
_WARM: Final = 2  # texts before those that count
_QUESTION: Final = "\n\nHow many ships did the keeper count on the last day?"


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a drawn model."""

    layers: int
    width: int

    def model(self, positions: int, seed: int) -> LlamaForCausalLM:
        """Draw a model with so many positions; its words mean nothing, its passes cost time."""
        config = LlamaConfig(
            vocab_size=384,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.width // 32),
            max_position_embeddings=positions,
            bos_token_id=0,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: LlamaForCausalLM = LlamaForCausalLM(config).train(False)
        return model


TARGET: Final = Shape(4, 256)
SMALL: Final = Shape(1, 128)


class ForcedDrafter(WatchedDrafter):
    """Takes a drafter's steps, and is right as often as it is told: the text is known to it."""

    rate = 0.0
    truth: Sequence[int] = ()

    def effort(self, context: DraftContext) -> Effort | None:
        """Return what a step takes; to begin is taken for free, as in a long text.

        What it takes stands in the rows, and counts in the speed of whole requests.
        """
        expected = super().effort(context)
        return None if expected is None else Effort(0.0, expected.step_s)

    def follower(
        self, context: DraftContext, path: Sequence[int], logits: torch.Tensor
    ) -> tuple[int, float]:
        """Return the next token of the text with a given probability, or else another one."""
        super().follower(context, path, logits)  # what it takes to choose is a part of a step
        at = len(context.text) + len(path)
        right = self.truth[at] if at < len(self.truth) else 0
        return (right if uniform(99, at) < self.rate else (right + 1) % 384), self.rate


def rapid(
    out: Annotated[Path, typer.Option(help="The folder for results and report.")] = Path(
        "ralmspec-rapid"
    ),
    lengths: Annotated[
        list[int] | None, typer.Option(help="Tokens of the context. [default: 1k, 4k, 8k, 16k]")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each text.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    trained: Annotated[
        Path | None,
        typer.Option(
            help="With the models that `python -m benchmarks.decoding.long_course` put there, and "
            "their own acceptance."
        ),
    ] = None,
    data: Annotated[
        Path, typer.Option(help="With --trained: the folder with *articles.jsonl, *passages.jsonl.")
    ] = Path("DATA"),
    questions: Annotated[
        int, typer.Option(min=1, help="With --trained: behind contexts of each length.")
    ] = 12,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that all of it runs.")] = False,
) -> None:
    """Measure RAPID's drafts beside plain decoding, with equal texts.

    The acceptance is forced, but with --trained. A run that was stopped goes on where it was, with
    the same command.
    """
    torch.set_num_threads(threads)
    if quick:
        lengths, tokens, repetitions, questions = [256, 1100], 12, 1, 2
    contexts = tuple(lengths or LENGTHS)
    if trained is not None:
        plan = Plan(contexts, questions, tokens, repetitions, threads, quick)
        typer.echo(measure_trained(trained, data, out, plan))
        return
    settings = {
        "lengths": contexts, "tokens": tokens, "repetitions": repetitions, "threads": threads,
        "rates": RATES, "retrieved": RETRIEVED, "quick": quick,
    }  # fmt: skip
    journal = Journal(out / "journal.jsonl", settings)
    about = journal.of("surroundings", surroundings)
    bench = Bench(max(contexts) + ROOM, tokens, repetitions, journal, quick=quick)
    measured = [bench.measure(length) for length in contexts]
    fitting = journal.of("simulated", lambda: simulated(300 if quick else 4000))
    far = journal.of("deviations", lambda: deviations(seeds=2 if quick else 20))
    result = {
        "surroundings": about, "settings": settings, "weights": bench.weights,
        "steps": journal.of("steps", lambda: bench.steps(contexts)), "measured": measured,
        "simulated": fitting, "deviations": far,
    }  # fmt: skip
    write_whole(out / "results.json", json.dumps(result, indent=1).encode())
    page = report(result)
    write_whole(out / "report.md", page.encode())
    typer.echo(page)


class Bench:
    """The models, and the ways in which they write."""

    def __init__(
        self, positions: int, tokens: int, repetitions: int, journal: Journal, *, quick: bool
    ) -> None:
        """Draw the models; the decoders are made and measured when they are needed."""
        self._tokens, self._repetitions, self._journal = tokens, repetitions, journal
        self._seconds = 0.05 if quick else 1.0
        self._target, self._small = TARGET.model(positions, 1), SMALL.model(positions, 2)
        self._tokenizer = tiny_tokenizer()
        self.weights = {
            name: sum(one.numel() for one in model.parameters())
            for name, model in (("target", self._target), ("small", self._small))
        }

    def measure(self, length: int) -> dict[str, Any]:
        """Return what each way takes behind a context of this length, all in turn."""
        measured: dict[str, Any] = self._journal.of(f"{length}", lambda: self._measured(length))
        return measured

    def _measured(self, length: int) -> dict[str, Any]:
        passages = [Passage("log", text_of(self._tokenizer, length))]
        request = Request(prompt=_QUESTION, max_tokens=self._tokens)
        plain = PlainWay(self._target, self._tokenizer)
        prefix, read = plain.read(request, passages)
        truth = plain.truth.tokens
        forced = [self._forced(way, rate, truth) for way in WAYS for rate in RATES]
        for one in forced:
            one.lm.caches.put(prefix, read)  # it is read once for all ways
        plain_s: list[float] = []
        theirs_s: list[float] = []
        for repetition in range(self._repetitions + _WARM):
            took_s = plain.own_s(request, passages), plain.theirs_s(self._tokens)
            turn = repetition % len(forced)  # none has the same place in every repetition
            rows = {
                one: one.row(request, passages, one.drafter.truth)
                for one in forced[turn:] + forced[:turn]
            }
            if repetition < _WARM:
                continue
            plain_s.append(took_s[0])
            theirs_s.append(took_s[1])
            for one, row in rows.items():
                one.rows.append(row)
        typer.echo(json.dumps({"length": length, "plain_s": plain_s}), err=True)
        return {
            "length": length,
            "context_tokens": len(prefix.tokens),
            "plain_s": plain_s,
            "generate_s": theirs_s,
            "ways": [one.result() | {"rate": one.drafter.rate} for one in forced],
        }

    def steps(self, lengths: Sequence[int]) -> list[dict[str, Any]]:
        """Return the seconds of a step of either model behind prompts of several lengths."""
        return step_costs({"self": self._target, "small": self._small}, lengths)

    def _forced(self, way: str, rate: float, truth: tuple[int, ...]) -> "ForcedWay":
        """Return the model with one of the drafters, which is right so often."""
        drafter = ForcedDrafter(
            None if way == "self" else self._small,
            threshold=-1.0,
            least_tokens=UNCUT if way == WHOLE else RETRIEVED,
        )
        drafter.rate, drafter.truth = rate, truth
        return ForcedWay(way, self._target, self._tokenizer, drafter, self._seconds)


class ForcedWay(DraftedWay):
    """One way to draft at one rate of acceptance."""

    drafter: ForcedDrafter


def text_of(tokenizer: Any, tokens: int) -> str:
    """Return a text of at least so many tokens."""
    rng, text, length = Random(tokens), "", 0
    while length < tokens:
        text += f"On day {rng.randrange(999)} the keeper counted {rng.randrange(400)} ships. "
        length = len(tokenizer.encode(text)) if len(text) > tokens else 0
    return text


# The tables.


def summary(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each length, way and rate the speed, its bound, and what share that is.

    Speeds are ratios to the faster of plain decoding and `generate`; those of `decoding` leave out
    what it takes to retrieve and to read the drafter's prompt, as the paper's do. The bound is that
    of the best fixed number of drafts, at the costs of passes and steps that were measured.
    """
    told = []
    for measured in result["measured"]:
        plain_s = min(median(measured["plain_s"]), median(measured["generate_s"]))
        for row in measured["ways"]:
            whole = median(one[0] for one in row["rows"])
            decoding = median(one[0] - one[1] for one in row["rows"])
            best = bound(row, row["rate"], measured["context_tokens"], result["steps"])
            told.append(
                {
                    "length": measured["length"],
                    "way": row["way"],
                    "rate": row["rate"],
                    "speed": plain_s / whole,
                    "decoding": plain_s / decoding,
                    "bound": best,
                    "share": plain_s / decoding / best,
                    "begins": any(one[1] for one in row["rows"]),
                    "tokens_a_pass": result["settings"]["tokens"]
                    / median(one[2] for one in row["rows"]),
                }
            )
    return told


def goals(told: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return what misses each goal."""

    def missing(least: float, name: str, *, of: Any) -> list[str]:
        return [
            f"{row['length']} {row['way']} {row['rate']}: {row[name]:.2f}"
            for row in told
            if of(row) and row[name] < least
        ]

    shortest, longest = (side(row["length"] for row in told) for side in (min, max))
    return {
        "90 % of the bound": missing(0.9, "share", of=lambda _: True),
        "above 2 with the small drafter behind the longest context at 75 %": missing(
            2.0,
            "decoding",
            of=lambda row: (row["length"], row["way"], row["rate"]) == (longest, "small", 0.75),
        ),
        "never below 0.98 behind the shortest context": missing(
            0.98, "speed", of=lambda row: row["length"] == shortest
        ),
    }


def report(result: dict[str, Any]) -> str:
    """Return the tables as a page."""
    about, weights, settings = result["surroundings"], result["weights"], result["settings"]
    parts = [
        "# Long contexts\n",
        _INTRODUCTION.format(
            machine=about["machine"],
            load=about["load_before"],
            threads=settings["threads"],
            tokens=settings["tokens"],
            repetitions=settings["repetitions"],
            target=weights["target"],
            small=weights["small"],
            retrieved=RETRIEVED,
        ),
        table(list(_COLUMNS.values()), [cells(row, _COLUMNS) for row in summary(result)]),
    ]
    for goal, missed in goals(summary(result)).items():
        parts.append(f"- {goal}: {'; '.join(missed) or 'reached'}")
    parts += [
        "\n## Cost of a pass by rows, c(k), in passes of one row\n",
        *_curves(result["measured"]),
        "\n## Steps of a drafter by the length of its prompt, milliseconds\n",
        table(
            ["tokens", "self", "small", "prefill, self", "prefill, small"],
            [
                [str(row["length"]), *(f"{1000 * row[name]:.2f}" for name in _STEPS)]
                for row in result["steps"]
            ],
        ),
        "\n## The paper's figures, simulated\n",
        result["simulated"]["told"],
        table(
            list(_SIMULATED.values()),
            [cells(row, _SIMULATED) for row in result["simulated"]["rows"]],
        ),
        "\n## How far RAPID's own rule is from p (total variation, mean and most)\n",
        table(
            ["eta", "rule, p", "rule, p^", "p^, p"],
            [
                [
                    f"{row['eta']:.0f}",
                    *(f"{row[name]:.2f} ({row[name + '_most']:.2f})" for name in _FAR),
                ]
                for row in result["deviations"]
            ],
        ),
    ]
    return "\n".join(parts) + "\n"


def _curves(measured: Sequence[dict[str, Any]]) -> Iterator[str]:
    for one in measured:
        row = one["ways"][0]
        costs = ", ".join(f"{rows}: {cost:.2f}" for rows, cost in row["costs"].items())
        yield f"- {one['length']} tokens, {1000 * row['pass_s']:.2f} ms: {costs}"


_INTRODUCTION: Final = """\
Measured on {machine}, load {load:.1f} before it began, {threads} threads; {tokens} tokens, medians of {repetitions}, all ways in turn.

Real: the passes, steps, retrieval, and equal texts.
Not real: the models are drawn ({target:,} weights; the small drafter {small:,}), and drafts are *forced* to be right as often as the column says.

Speed: whole requests behind a context that was read before, against the faster of plain decoding and `generate`.
Decoding: without retrieving and reading the drafter's prompt of {retrieved} tokens (all of it: the whole context), as the paper has it.
Whether a drafter begins is decided by its steps alone, as in a long text.
"""  # noqa: E501 a line of the page is a sentence
_COLUMNS: Final = {
    "length": "context",
    "way": "drafter",
    "rate": "forced acceptance",
    "begins": "drafts",
    "tokens_a_pass": "tokens a pass",
    "speed": "speed",
    "decoding": "decoding",
    "bound": "bound",
    "share": "share",
}
_SIMULATED: Final = {
    "row": "row",
    "acceptance": "acceptance",
    "published": "published",
    "predicted": "predicted",
    "error": "error",
    "parallel": "in parallel",
}
_STEPS: Final = ("self_step_s", "small_step_s", "self_prefill_s", "small_prefill_s")
_FAR: Final = ("rule_p", "rule_p_hat", "p_hat_p")
