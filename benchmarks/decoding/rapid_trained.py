"""Drafts of a retrieved part of a long context by trained models: acceptance and speed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import typer

from benchmarks.decoding.course import opened
from benchmarks.decoding.exercises import Exercise, Sources, sources
from benchmarks.decoding.journal import Journal
from benchmarks.decoding.measure import UnequalTextError
from benchmarks.decoding.rapid_ways import (
    RETRIEVED,
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
from benchmarks.decoding.tasks import SEED
from benchmarks.harness.inputs import LoadedModel
from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding import DraftContext
from ralmspec_plugins.decoding.long_context import ChunkSettings, LongContext, PromptParts
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.lm.prompts import decode, encode
from ralmspec_plugins.retrieval.encoders import HashingEncoder
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Request

KINDS: Final = ("docqa", "extraction")
CHUNK_TOKENS: Final = 128  # as in RAPID's code
THRESHOLD: Final = 0.1  # likewise: hashed words are less similar than a trained encoder's vectors


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        lengths: tokens of the contexts.
        questions: behind contexts of each length, each with a context of its own.
        tokens: of each text.
        repetitions: of each way and question.
        threads: of torch.
        quick: whether passes are hardly timed.
    """

    lengths: tuple[int, ...]
    questions: int
    tokens: int
    repetitions: int
    threads: int
    quick: bool


def measure_trained(cache: Path, data: Path, out: Path, plan: Plan) -> str:
    """Measure trained models on held-out questions; return the page.

    Args:
        cache: where `python -m benchmarks.decoding.long_course` put its models.
        data: the folder of the texts.
        out: the folder of journal, results and page.
        plan: what is measured.

    Raises:
        ConfigError: there are no models.
        UnequalTextError: a way led to another text, or the text is empty.
    """
    settings = asdict(plan) | {"seed": SEED, "retrieved": RETRIEVED}
    settings |= {"chunk_tokens": CHUNK_TOKENS, "threshold": THRESHOLD}
    journal = Journal(out / "trained_journal.jsonl", settings)
    about = journal.of("surroundings", surroundings)
    bench = TrainedBench(opened(cache), sources(data)[1], plan, journal)
    # A run that was stopped has about as many questions of each length.
    asked = [bench.measure(length, at) for at in range(plan.questions) for length in plan.lengths]
    result = {
        "surroundings": about,
        "settings": settings,
        "weights": bench.weights,
        "training": {
            name: json.loads((cache / name / "facts.json").read_text()) for name in bench.weights
        },
        "steps": journal.of("steps", bench.steps),
        "questions": sorted(asked, key=lambda one: (one["length"], one["number"])),
    }
    write_whole(out / "trained.json", json.dumps(result, indent=1).encode())
    page = trained_page(result)
    write_whole(out / "trained.md", page.encode())
    return page


class TrainedBench:
    """The models, and the ways in which they answer."""

    def __init__(
        self, models: Mapping[str, LoadedModel], held_out: Sources, plan: Plan, journal: Journal
    ) -> None:
        """Take the models; the decoders are made and measured when they are needed."""
        target, small = models["target"], models["drafter"]
        self.weights = {name: one.parameters for name, one in models.items()}
        self._models = {"self": target.model, "small": small.model}
        self._tokenizer = target.tokenizer
        self._held_out, self._plan, self._journal = held_out, plan, journal
        self._made: tuple[PlainWay, list[DraftedWay]] | None = None
        self._warm: set[int] = set()  # doublings of the context behind which passes were timed

    def measure(self, length: int, number: int) -> dict[str, Any]:
        """Return what each way takes for a question behind so many tokens, all in turn."""
        found: dict[str, Any] = self._journal.of(
            f"{length} {number}",
            lambda: self._measured(length, number, self._exercise(length, number)),
        )
        return found

    def steps(self) -> list[dict[str, Any]]:
        """Return the seconds of a step of either model behind prompts of several lengths."""
        return step_costs(self._models, self._plan.lengths)

    def _exercise(self, length: int, number: int) -> Exercise:
        dice = Random(f"{SEED} {length} {number}")
        return self._held_out.buried(KINDS[number % len(KINDS)], dice, length, self._count)

    def _count(self, text: str) -> int:
        return len(encode(self._tokenizer, text, literal=True))

    def _ways(self) -> tuple[PlainWay, list[DraftedWay]]:
        """Return the plain way and those with drafts, which learn from question to question."""
        if self._made is None:
            target = self._models["self"]
            seconds = 0.05 if self._plan.quick else 1.0
            drafted = [
                DraftedWay(way, target, self._tokenizer, self._drafter(way), seconds)
                for way in WAYS
            ]
            self._made = PlainWay(target, self._tokenizer), drafted
        return self._made

    def _drafter(self, way: str) -> WatchedDrafter:
        return WatchedDrafter(
            None if way == "self" else self._models["small"],
            chunk_tokens=CHUNK_TOKENS,
            threshold=-1.0 if way == WHOLE else THRESHOLD,
            least_tokens=UNCUT if way == WHOLE else RETRIEVED,
        )

    def _measured(self, length: int, number: int, asked: Exercise) -> dict[str, Any]:
        """Answer an exercise in all ways, in turn."""
        request = Request(prompt=asked.prompt, max_tokens=self._plan.tokens)
        passages = list(asked.passages)
        plain, drafted = self._ways()
        prefix, read = plain.read(request, passages)
        truth = tuple(plain.truth.tokens)
        text = decode(self._tokenizer, truth)
        if len(truth) != self._plan.tokens or not text.strip():
            raise UnequalTextError(f"the text behind {length} tokens is empty: {text!r}")
        for one in drafted:
            one.rows = []
            one.lm.caches.put(prefix, read)  # it is read once for all ways
        doubling = (len(prefix.tokens) + len(plain.truth.prompt_tokens)).bit_length()
        if doubling not in self._warm:  # in such texts passes are timed, once in a process
            self._warm.add(doubling)
            for one in drafted:
                one.row(request, passages, truth)
        plain_s: list[float] = []
        theirs_s: list[float] = []
        for repetition in range(self._plan.repetitions):
            plain_s.append(plain.own_s(request, passages))
            theirs_s.append(plain.theirs_s(self._plan.tokens))
            turn = (number + repetition) % len(drafted)
            for one in drafted[turn:] + drafted[:turn]:
                one.rows.append(one.row(request, passages, truth))
        context = next((one.drafter.seen for one in drafted if one.drafter.seen), None)
        told = {
            "length": length, "number": number, "kind": asked.kind,
            "context_tokens": len(prefix.tokens), "text": text, "sentence": asked.sentence,
            "right": is_right(text, asked.sentence), "plain_s": plain_s, "generate_s": theirs_s,
            "defaults_find": None if context is None else self._found(context),
            "ways": [self._told(one, context, truth, asked) for one in drafted],
        }  # fmt: skip
        typer.echo(json.dumps({name: told[name] for name in _SAID}), err=True)
        return told

    def _told(
        self, one: DraftedWay, context: DraftContext | None, truth: tuple[int, ...], asked: Exercise
    ) -> dict[str, Any]:
        """Return a way's rows, how many tokens it would draft, and what it read."""
        found = one.result() | {"agreed": None, "finds": None}
        if context is not None:
            try:
                found["agreed"] = one.drafter.agreed(context, truth)
                chunks = one.drafter.chunks_in_use(context)
                tokens = [token for chunk in chunks for token in chunk.tokens]
                found["finds"] = asked.sentence in decode(self._tokenizer, tokens)
                found["chunk_tokens"] = len(tokens)
            except InputError:  # nothing is similar enough: it never drafts
                found["finds"] = False
            one.drafter.release(context.request)
        return found

    def _found(self, context: DraftContext) -> bool:
        """Return whether the product's own settings retrieve anything."""
        parts = PromptParts.of(context, 1)

        def text(tokens: Sequence[int]) -> str:
            return decode(self._tokenizer, tokens)

        try:
            LongContext(parts.context, text, HashingEncoder(), ChunkSettings()).retrieve(
                text(parts.question)
            )
        except InputError:
            return False
        return True


def is_right(text: str, sentence: str) -> bool:
    """Return whether a text begins with a sentence, or with as much of it as it has room for.

    >>> is_right(" of stone. It", "of stone."), is_right(" of st", "of stone."), is_right("o", "i")
    (True, True, False)
    """
    written, wanted = text.strip(), sentence.strip()
    return bool(wanted) and (written.startswith(wanted) or wanted.startswith(written))


# The tables.


def trained_summary(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each length and way acceptance, speed, and the bound at this acceptance.

    Speed is that of whole requests, in medians of a question's repetitions, against the faster of
    plain decoding and `generate`; of the questions there are median, least and most.
    """
    return [
        _summed(result, [one for one in result["questions"] if one["length"] == length], at)
        for length in result["settings"]["lengths"]
        for at in range(len(result["questions"][0]["ways"]))
    ]


def _summed(
    result: Mapping[str, Any], asked: Sequence[Mapping[str, Any]], at: int
) -> dict[str, Any]:
    """Sum up one way over the questions behind contexts of a length."""
    rows = [one["ways"][at] for one in asked]
    tokens = result["settings"]["tokens"]
    times = [one for row in rows for one in row["rows"]]
    passes, accepted, proposed = (sum(one[column] for one in times) for column in (2, 3, 4))
    rate = _rate(rows, tokens)
    speeds = sorted(_speed(one, row) for one, row in zip(asked, rows, strict=True))
    bounds = [
        bound(row, rate or 0.0, one["context_tokens"], result["steps"])
        for one, row in zip(asked, rows, strict=True)
    ]
    return {
        "length": asked[0]["length"],
        "way": rows[0]["way"],
        "finds": f"{sum(bool(row['finds']) for row in rows)} of {len(rows)}",
        "rate": rate,
        "rate_found": _rate([row for row in rows if row["finds"]], tokens),
        "begins": f"{sum(any(one[4] for one in row['rows']) for row in rows)} of {len(rows)}",
        "accepted": accepted / proposed if proposed else None,
        "tokens_a_pass": tokens * len(times) / passes,
        "speed": median(speeds),
        "least": speeds[0],
        "most": speeds[-1],
        "bound": None if rate is None else median(bounds),
    }


def _rate(rows: Sequence[Mapping[str, Any]], tokens: int) -> float | None:
    """Return the share of all tokens but the first that would have been drafted."""
    known = [row["agreed"] for row in rows if row["agreed"] is not None]
    return sum(known) / ((tokens - 1) * len(known)) if known else None


def _speed(one: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    plain_s = min(median(one["plain_s"]), median(one["generate_s"]))
    return float(plain_s / median(times[0] for times in row["rows"]))


def copied(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield for each length how many sentences the target wrote as they stand in the context."""
    for length in result["settings"]["lengths"]:
        asked = [one for one in result["questions"] if one["length"] == length]
        yield {
            "length": length,
            **{
                kind: f"{sum(one['right'] for one in of_kind)} of {len(of_kind)}"
                for kind in KINDS
                if (of_kind := [one for one in asked if one["kind"] == kind])
            },
            "plain_ms": 1000 * median(median(one["plain_s"]) for one in asked),
            "generate_ms": 1000 * median(median(one["generate_s"]) for one in asked),
            "defaults": f"{sum(bool(one['defaults_find']) for one in asked)} of {len(asked)}",
        }


def trained_page(result: Mapping[str, Any]) -> str:
    """Return the tables as a page."""
    about, settings, weights = result["surroundings"], result["settings"], result["weights"]
    return "\n".join(
        [
            "# Long contexts, trained models\n",
            _INTRODUCTION.format(
                machine=about["machine"],
                load=about["load_before"],
                target=weights["target"],
                small=weights["drafter"],
                target_tokens=_tokens(result, "target"),
                small_tokens=_tokens(result, "drafter"),
                **settings,
            ),
            table(
                list(_COLUMNS.values()), [cells(row, _COLUMNS) for row in trained_summary(result)]
            ),
            "\n## Whether the target copies\n",
            table(list(_COPIED.values()), [cells(row, _COPIED) for row in copied(result)]),
            "\n## Steps by the length of the prompt, milliseconds\n",
            table(
                ["tokens", "target", "small", "prefill, target", "prefill, small"],
                [
                    [str(row["length"]), *(f"{1000 * row[name]:.2f}" for name in _STEPS)]
                    for row in result["steps"]
                ],
            ),
            "",
        ]
    )


def _tokens(result: Mapping[str, Any], name: str) -> int:
    return sum(one["tokens"] for one in result["training"][name])


_INTRODUCTION: Final = """\
Measured on {machine}, load {load:.1f} before it began, {threads} threads; greedy, float32, {tokens} tokens; {questions} held-out questions for each length, each behind a context of its own, medians of {repetitions}, all ways in turn.

The models begin with hand-made copying heads (`benchmarks/decoding/copying.py`) and are trained from there: the target ({target:,} weights) on {target_tokens:,} tokens, the small drafter ({small:,}) on {small_tokens:,}.
A question asks for a sentence of a held-out article whose passages stand at a random place among those of other held-out articles.
Chunks of {chunk_tokens} tokens are retrieved by hashed words, at least {threshold} similar to the question, {retrieved} tokens in all.

Finds: the sentence that is asked for stands in the chunks.
Agreement: the share of the target's tokens that the drafter would have chosen behind the same text, of all questions and of those whose sentence it finds; the bound is that of the best fixed number of drafts at this rate of acceptance, and the measured costs of passes and steps.
Accepted: the share of the proposed drafts that became text.
Speed: whole requests behind a context that was read before, with retrieval and the drafter's own reading, against the faster of plain decoding and `generate`: median, least and most of the questions.
"""  # noqa: E501 a line of the page is a sentence
_COLUMNS: Final = {
    "length": "context",
    "way": "drafter",
    "finds": "finds",
    "rate": "agreement",
    "rate_found": "where it finds",
    "begins": "drafts",
    "accepted": "accepted",
    "tokens_a_pass": "tokens a pass",
    "speed": "speed",
    "least": "least",
    "most": "most",
    "bound": "bound",
}
_COPIED: Final = {
    "length": "context",
    **{kind: f"{kind}, sentences right" for kind in KINDS},
    "plain_ms": "plain, ms",
    "generate_ms": "generate, ms",
    "defaults": "the default settings retrieve something",
}
_STEPS: Final = ("self_step_s", "small_step_s", "self_prefill_s", "small_prefill_s")
_SAID: Final = ("length", "number", "right", "plain_s")
