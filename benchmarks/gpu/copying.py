"""Speculative decoding of a text that copies its prompt, by a large model's own passes."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from benchmarks.gpu.passing import LLAMA_8B, Shape, drawn_model
from benchmarks.gpu.rows import Rows, in_turn
from benchmarks.harness.inputs import Library, TraceLM, python_library, vocabulary
from ralmspec_plugins.decoding import Decoding
from ralmspec_plugins.decoding.decoder import SpeculativeDecoder
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request

_POSITIONS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySizes:
    """The sizes of the part: in each text so many words are copied, so many are new, and so on."""

    shape: Shape = LLAMA_8B
    texts: int = 4
    tokens: int = 192
    copied: int = 24
    new: int = 4
    pass_rows: tuple[int, ...] = (8, 16)
    repetitions: int = 3


def copying(rows: Rows, part: str, sizes: CopySizes) -> None:
    """Measure plain decoding beside drafts from the prompt, verified in passes of a fixed shape.

    The weights are drawn, so the text is given: every token is chosen from the logits of a real
    pass, and then replaced. Drafts are accepted where they agree with it.
    """
    names = [f"{part}: {wide} rows a pass" for wide in sizes.pass_rows]
    if rows.complete(names):
        return
    library = python_library()
    words = vocabulary(library.articles[:50])
    shape = replace(sizes.shape, vocabulary=max(sizes.shape.vocabulary, len(words)))
    model = drawn_model(shape, rows.device, _POSITIONS)
    requests = copied_texts(library, sizes)
    for name, wide in zip(names, sizes.pass_rows, strict=True):
        rows.of(name, partial(_measured, model, words, requests, wide, sizes, rows))


def copied_texts(library: Library, sizes: CopySizes) -> list[Request]:
    """Return requests whose texts are made of pieces of their prompts, with new words between."""
    dice = random.Random(0)
    found = []
    for article in library.articles[: sizes.texts]:
        every = article.split()
        prompt, rest = every[:200], every[200:]
        text: list[str] = []
        while len(text) < 2 * sizes.tokens:
            start = dice.randrange(max(1, len(prompt) - sizes.copied))
            text += prompt[start : start + sizes.copied]
            text += [dice.choice(rest or prompt) for _ in range(sizes.new)]
        found.append(
            Request(prompt=" ".join(prompt), max_tokens=sizes.tokens, context=" ".join(text))
        )
    return found


def _measured(
    model: Any, words: Any, requests: list[Request], wide: int, sizes: CopySizes, rows: Rows
) -> dict[str, Any]:
    """Return the times of all ways; each writes the same tokens."""
    invariant = Decoding(exactness="invariant", pass_rows=wide)
    lms = {
        "plain": TraceLM(model, words),
        "suffix": TraceLM(model, words, decoding=invariant),
    }
    fast = lms["suffix"].decoder
    if not isinstance(fast, SpeculativeDecoder):
        return {"left_out": "the probe found rows that depend on others, so nothing is drafted"}
    calls: dict[str, Callable[[], Any]] = {
        name: partial(_written, lm, requests) for name, lm in lms.items()
    }
    expected = calls["plain"]()
    assert expected == calls["suffix"](), "the texts differ"
    times = in_turn(calls, sizes.repetitions, rows.device)
    passes = max(1, fast.counts.passes)
    return {
        "model": sizes.shape.name,
        "tokens": sum(map(len, expected)),
        "ms": times,
        "decoding_speed": round(median(times["plain"]) / median(times["suffix"]), 3),
        "tokens_a_pass": round((passes + fast.counts.accepted) / passes, 2),
        "equal": True,
    }


def _written(lm: TraceLM, requests: list[Request]) -> list[tuple[int, ...]]:
    """Write all texts, and free their caches."""
    found = []
    for request in requests:
        draft = lm.write(lm.begin(request), (), request.max_tokens, Progress())
        lm.release(draft)
        found.append(draft.tokens)
    return found
