"""`python -m benchmarks rapid`: drafts of a retrieved part of a long context, by its length."""

import copy
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
from benchmarks.decoding.measure import UnequalTextError
from benchmarks.decoding.rapid_rule import deviations
from benchmarks.decoding.rapid_simulated import simulated
from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding import CostCurve, Decoding, DraftContext, Effort, RagDrafter
from ralmspec_plugins.decoding.budget import Budget
from ralmspec_plugins.decoding.calibration import pass_clock
from ralmspec_plugins.decoding.decoder import SpeculativeDecoder
from ralmspec_plugins.decoding.prompt_reading import PromptReading
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import ModelRunner, Run
from ralmspec_plugins.lm.sampling import uniform
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.testing.models import tiny_tokenizer
from ralmspec_plugins.types import Passage, Request

LENGTHS: Final = (1024, 4096, 8192, 16384)
RATES: Final = (0.6, 0.75, 0.85)  # the paper's: plain speculation from 60 %, RAPID to 85 %
RETRIEVED: Final = 1024  # tokens that a drafter reads of a longer context
_ROOM: Final = 512  # positions for question and text
_CACHES: Final = 16 * 2**30
_UNCUT: Final = 2**30
_WARM: Final = 2  # texts before those that count
WHOLE: Final = "small, all of it"  # the small drafter behind the whole context
WAYS: Final = ("self", "small", WHOLE)
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


class ForcedDrafter(RagDrafter):
    """Takes a drafter's steps, and is right as often as it is told: the text is known to it."""

    rate = 0.0
    truth: Sequence[int] = ()
    begun_s = 0.0  # what it took to begin since this was set to 0
    prompt_tokens = 0

    def effort(self, context: DraftContext) -> Effort | None:
        """Return what a step takes; to begin is taken for free, as in a long text.

        What it takes stands in the rows, and counts in the speed of whole requests.
        """
        expected = super().effort(context)
        return None if expected is None else Effort(0.0, expected.step_s)

    def begin(self, context: DraftContext) -> None:
        """Retrieve and read, and take the time."""
        clock = self.reader.clock
        began_s = clock()
        super().begin(context)
        self.begun_s += clock() - began_s
        self.prompt_tokens = len(self._request(context).prompt)

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
    quick: Annotated[bool, typer.Option("--quick", help="Only see that all of it runs.")] = False,
) -> None:
    """Measure RAPID's drafts beside plain decoding, with forced acceptance and equal texts.

    A run that was stopped goes on where it was, with the same command.
    """
    torch.set_num_threads(threads)
    if quick:
        lengths, tokens, repetitions = [256, 1100], 12, 1
    contexts = tuple(lengths or LENGTHS)
    settings = {
        "lengths": contexts, "tokens": tokens, "repetitions": repetitions, "threads": threads,
        "rates": RATES, "retrieved": RETRIEVED, "quick": quick,
    }  # fmt: skip
    journal = Journal(out / "journal.jsonl", settings)
    about = journal.of("surroundings", surroundings)
    bench = Bench(max(contexts) + _ROOM, tokens, repetitions, journal, quick=quick)
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
        lm = HuggingFaceLM(
            self._target, self._tokenizer, passage_tokens=_UNCUT, cache_bytes=_CACHES
        )
        truth = lm.write(lm.begin(self._request), passages, self._tokens, Progress())
        prefix = lm._lineage(truth).prefix
        read = lm.caches.find(prefix, Run)
        assert read is not None
        forced = [self._forced(way, rate, truth.tokens) for way in WAYS for rate in RATES]
        for one in forced:
            one.lm.caches.put(prefix, read)  # it is read once for all ways
        plain_s: list[float] = []
        theirs_s: list[float] = []
        for repetition in range(self._repetitions + _WARM):
            took_s = self._plain(lm, truth, passages), self._theirs(lm, truth)
            turn = repetition % len(forced)  # none has the same place in every repetition
            rows = {one: one.row(self._request, passages) for one in forced[turn:] + forced[:turn]}
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
            "ways": [one.result() for one in forced],
        }

    def steps(self, lengths: Sequence[int]) -> list[dict[str, Any]]:
        """Return the seconds of a step of either model behind prompts of several lengths."""
        rows = []
        for length in sorted({256, 512, 1024, 2048, 4096, *lengths}):
            if length > max(lengths):
                continue
            row: dict[str, Any] = {"length": length}
            for name, model in (("self", self._target), ("small", self._small)):
                runner = ModelRunner(model, 0)
                clock = pass_clock(runner.device)
                began_s = clock()
                reading = PromptReading(runner, tuple(at % 300 + 2 for at in range(length)))
                row[f"{name}_prefill_s"] = clock() - began_s
                took: list[float] = []
                for count in range(1, 9):
                    began_s = clock()
                    reading.after((5,) * count, singly=True)
                    took.append(clock() - began_s)
                row[f"{name}_step_s"] = min(took)
            rows.append(row)
        return rows

    @property
    def _request(self) -> Request:
        return Request(prompt=_QUESTION, max_tokens=self._tokens)

    def _plain(self, lm: HuggingFaceLM, truth: Any, passages: list[Passage]) -> float:
        """Return what our own plain decoding takes."""
        clock = pass_clock(lm._passes.device)
        began_s = clock()
        draft = lm.write(lm.begin(self._request), passages, self._tokens, Progress())
        took_s = clock() - began_s
        if draft.tokens != truth.tokens:
            raise UnequalTextError("plain decoding wrote another text than before")
        return took_s

    def _theirs(self, lm: HuggingFaceLM, truth: Any) -> float:
        """Return what transformers' own takes, from a copy of the same cache."""
        lineage = lm._lineage(truth)
        prefix = lm.caches.find(lineage.prefix, Run)
        assert prefix is not None
        ids = torch.tensor([[*lineage.prefix.tokens, *lineage.prompt]])
        target: Any = self._target
        cache, clock = copy.deepcopy(prefix.cache), pass_clock(lm._passes.device)
        began_s = clock()
        found = target.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache,
            max_new_tokens=self._tokens, do_sample=False,
        )  # fmt: skip
        took_s = clock() - began_s
        if tuple(found[0, ids.shape[1] :].tolist()) != truth.tokens:
            raise UnequalTextError("generate wrote another text")
        return took_s

    def _forced(self, way: str, rate: float, truth: tuple[int, ...]) -> "ForcedWay":
        """Return the model with one of the drafters, which is right so often."""
        drafter = ForcedDrafter(
            None if way == "self" else self._small,
            threshold=-1.0,
            least_tokens=_UNCUT if way == WHOLE else RETRIEVED,
        )
        drafter.rate, drafter.truth = rate, truth
        decoding = Decoding(drafter=drafter, calibration_s=self._seconds, most_retakes=1.0)
        lm = HuggingFaceLM(
            self._target,
            self._tokenizer,
            passage_tokens=_UNCUT,
            cache_bytes=_CACHES,
            decoding=decoding,
        )
        return ForcedWay(way, lm, drafter)


class ForcedWay:
    """One way to draft at one rate of acceptance, and what its texts took."""

    def __init__(self, way: str, lm: HuggingFaceLM, drafter: ForcedDrafter) -> None:
        """Start without texts."""
        self.way, self.lm = way, lm
        self.rows: list[list[float]] = []
        self._drafter, self._front = drafter, 0

    def row(self, request: Request, passages: list[Passage]) -> list[float]:
        """Write the text once; return the seconds of all and of beginning, passes, and drafts."""
        lm, drafter, progress = self.lm, self._drafter, Progress()
        clock, drafter.begun_s = pass_clock(lm._passes.device), 0.0
        began_s = clock()
        draft = lm.write(lm.begin(request), passages, request.max_tokens, progress)
        took_s = clock() - began_s
        if draft.tokens != drafter.truth:
            raise UnequalTextError(f"{self.way} at rate {drafter.rate} wrote another text")
        self._front = len(lm._lineage(draft).prefix.tokens) + len(draft.prompt_tokens)
        lm.release(draft)
        return [took_s, drafter.begun_s, progress.model_passes, progress.drafts_accepted]

    def result(self) -> dict[str, Any]:
        """Return the rows, and the costs by which was decided how much to draft."""
        decoder: Any = self.lm.decoder
        assert isinstance(decoder, SpeculativeDecoder)
        costs = decoder._budgets.get(self._front.bit_length(), decoder.budget).costs
        read = self._drafter.prompt_tokens
        return {
            "way": self.way,
            "rate": self._drafter.rate,
            "rows": self.rows,
            "pass_s": costs.pass_s,
            "costs": dict(zip(map(str, costs.rows), costs.costs, strict=True)),
            "prompt_tokens": read,
            "step_s": self._drafter.reader.step_s(read),
        }


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
            bound = _bound(row, measured["context_tokens"], result["steps"])
            told.append(
                {
                    "length": measured["length"],
                    "way": row["way"],
                    "rate": row["rate"],
                    "speed": plain_s / whole,
                    "decoding": plain_s / decoding,
                    "bound": bound,
                    "share": plain_s / decoding / bound,
                    "begins": any(one[1] for one in row["rows"]),
                    "tokens_a_pass": result["settings"]["tokens"]
                    / median(one[2] for one in row["rows"]),
                }
            )
    return told


def _bound(row: dict[str, Any], context: int, steps: Sequence[dict[str, Any]]) -> float:
    """Return the best speed that costs of passes and steps leave."""
    curve = CostCurve(tuple(map(int, row["costs"])), tuple(row["costs"].values()), row["pass_s"])
    step_s = row["step_s"]
    if step_s is None:  # it never began: by the step behind as many tokens as it would read
        read = context if row["way"] == WHOLE else min(context, RETRIEVED)
        nearest = min(steps, key=lambda one: abs(one["length"] - read))
        step_s = nearest["self_step_s" if row["way"] == "self" else "small_step_s"]
    return 1.0 / Budget(curve).passes_per_token(row["rate"], step_s / row["pass_s"], 15)


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
        table(list(_COLUMNS.values()), [_cells(row, _COLUMNS) for row in summary(result)]),
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
            [_cells(row, _SIMULATED) for row in result["simulated"]["rows"]],
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


def _cells(row: dict[str, Any], columns: dict[str, str]) -> list[str]:
    return [_shown(row.get(name)) for name in columns]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


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
