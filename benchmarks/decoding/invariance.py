"""`python -m benchmarks.decoding.invariance`: texts of passes of a fixed shape, token by token.

In invariant mode a text with drafts has to equal the one with a token a pass, in any precision.
Beside it stands what drafts without a certificate do over caches that grow, "fast": the tokens
in which they differ from passes over one row.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import torch
import typer

from benchmarks.decoding.exactness import FREE, SEED, SHAPES, Rereader, Subject, subject
from benchmarks.decoding.journal import Journal
from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding import Decoding, SuffixDrafter
from ralmspec_plugins.decoding.fixed_shape import FixedShapeRunner
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Request

Row = dict[str, Any]
PRECISIONS: Final = ("float32", "bfloat16")
SAMPLINGS: Final[Mapping[str, Greedy | Sampling]] = {
    "greedy": Greedy(),
    "sampled": Sampling(temperature=0.8, top_p=0.9),
}
_ATTENTION: Final = ("sdpa", "eager")
_THREADS: Final = (1, 2)
_CONTEXT: Final = 1024
_WORDS: Final = (
    *("the", "ships", "that", "passed", "island", "before"),
    *("a", "storm", "keeper", "counted", "sells", "and"),
)
_PROMPTS: Final = (60, 100)  # words, least and most: a text then begins before position 256
_LENGTH: Final = 320  # tokens of a text, which so ends behind position 256 or 512


def compare(one: Subject, texts: int, length: int) -> list[Row]:
    """Write texts in each way, and count by sampling where those that must be equal differ.

    Raises:
        RuntimeError: the machine's passes of a fixed shape are not invariant.
    """
    rereader = Rereader()
    drafters = (rereader, SuffixDrafter())
    made = partial(HuggingFaceLM, one.model, one.tokenizer, template=one.template)
    fixed = partial(Decoding, exactness="invariant", costs=FREE, calibration_s=0.01)
    certified = Decoding(
        drafter=drafters, exactness="certified", costs=FREE, most_retakes=1.0, calibration_s=0.1
    )
    lms = [
        made(decoding=fixed(drafter=())),
        made(decoding=fixed(drafter=drafters)),
        made(),
        made(decoding=certified),
    ]
    for lm in lms[:2]:
        fixed_shape = isinstance(lm.decoder.runner, FixedShapeRunner)
        if not fixed_shape:
            raise RuntimeError(f"no passes of a fixed shape for {one.name}: see the warning")
    return [
        {"sampling": name, **_counted(lms, sampling, rereader, texts, length)}
        for name, sampling in SAMPLINGS.items()
    ]


def _counted(
    lms: Sequence[HuggingFaceLM],
    sampling: Greedy | Sampling,
    rereader: Rereader,
    texts: int,
    length: int,
) -> Row:
    plain, drafted, single, fast = (_uncertified(lm.variant(sampling=sampling)) for lm in lms)
    row: Row = {"texts": texts, "tokens": 0, "borders": 0, "different": 0}
    row |= {"fast_texts": 0, "fast_different": 0, "accepted": 0}
    accepted = [_accepted(lm) for lm in (drafted, fast)]
    for request, (slow, quick, name) in product(
        requests(texts, length), ((plain, drafted, ""), (single, fast, "fast_"))
    ):
        expected, borders = _text(slow, request)
        rereader.text = expected
        found, _ = _text(quick, request)
        unequal = sum(left != right for left, right in zip(expected, found, strict=True))
        row[f"{name}different"] += unequal
        if name:
            row["fast_texts"] += bool(unequal)
        else:
            row["tokens"] += len(expected)
            row["borders"] += borders
    row["accepted"] = _accepted(drafted) - accepted[0]
    row["fast_accepted"] = _accepted(fast) - accepted[1]
    return row


def requests(texts: int, length: int) -> Iterator[Request]:
    """Yield requests whose prompts have about 120 to 230 tokens."""
    for number in range(texts):
        dice = Random(f"{SEED} {number}")
        words = dice.choices(_WORDS, k=dice.randint(*_PROMPTS))
        yield Request(prompt=" ".join(words), max_tokens=length, seed=number)


def _uncertified(lm: HuggingFaceLM) -> HuggingFaceLM:
    """Take every choice of a pass as it comes, as other implementations do."""
    decoder: Any = lm.decoder
    if hasattr(decoder, "known"):
        decoder.known = replace(decoder.known, exact=True)
    return lm


def _accepted(lm: HuggingFaceLM) -> int:
    decoder: Any = lm.decoder
    return int(decoder.counts.accepted)


def _text(lm: HuggingFaceLM, request: Request) -> tuple[tuple[int, ...], int]:
    """Write a text; return its tokens, and how many borders of cache lengths are inside it."""
    draft = lm.begin(request)
    front = len(draft.prompt_tokens)
    draft = lm.write(draft, (), request.max_tokens, Progress())
    lm.release(draft)
    behind = front + len(draft.tokens)
    return draft.tokens, sum(front < border < behind for border in (256, 512, 1024))


def report(rows: Sequence[Row]) -> str:
    """Write a table: by shape and precision, over attention, threads and sampling."""
    heads = ["model", "precision", "tokens", "borders crossed", "drafts accepted", "different"]
    heads += ["fast: different", "fast: texts that differ"]
    counted = ("tokens", "borders", "accepted", "different", "fast_different")
    told = []
    for model, precision in product(SHAPES, PRECISIONS):
        mine = [row for row in rows if (row["model"], row["precision"]) == (model, precision)]
        sums = [f"{sum(row[name] for row in mine):,}" for name in counted]
        texts = f"{sum(row['fast_texts'] for row in mine)} of {sum(row['texts'] for row in mine)}"
        told.append([model, precision, *sums, texts])
    return table(heads, told)


def main(
    out: Annotated[Path, typer.Option(help="The folder for journal, counts and table.")] = Path(
        "ralmspec-invariance"
    ),
    texts: Annotated[int, typer.Option(min=1, help="In each setting.")] = 2,
    length: Annotated[int, typer.Option(min=1, max=700, help="Tokens of a text.")] = _LENGTH,
) -> None:
    """Compare four shapes in two precisions, with both kinds of attention, one and two threads.

    A run that was stopped goes on where it was, with the same command.
    """
    journal = Journal(out / "journal.jsonl", {"texts": texts, "length": length, "seed": SEED})
    about = journal.of("surroundings", surroundings)
    rows: list[Row] = []
    settings = product(SHAPES, PRECISIONS, _ATTENTION, _THREADS)
    for name, precision, attention, threads in settings:
        where: Row = {"model": name, "precision": precision}
        where |= {"attention": attention, "threads": threads}
        work = partial(_in_setting, name, precision, attention, threads, texts, length)
        found = journal.of(" ".join(map(str, where.values())), work)
        rows += [{**where, **row} for row in found]
        typer.echo(json.dumps(rows[-1]), err=True)
    totals = {
        f"{precision} {name}": sum(row[name] for row in rows if row["precision"] == precision)
        for precision in PRECISIONS
        for name in ("tokens", "borders", "different", "fast_different")
    }
    result = {"surroundings": about, "totals": totals, "rows": rows}
    write_whole(out / "invariance.json", (json.dumps(result, indent=1) + "\n").encode())
    write_whole(out / "invariance.md", report(rows).encode())
    typer.echo(report(rows))
    if any(row["different"] for row in rows):
        raise typer.Exit(1)


def _in_setting(
    name: str, precision: str, attention: str, threads: int, texts: int, length: int
) -> list[Row]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one = subject(name, _CONTEXT)
        one.model.to(getattr(torch, precision))
        one.model.set_attn_implementation(attention)
        return compare(one, texts, length)
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    typer.run(main)
