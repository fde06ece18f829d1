"""Steps whose queries are encoded in a worker, and guesses that are right as often as asked."""

import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins import Continuous, Hit, Latencies, Passage, Settings, Simulation
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Answer, Hits, Query
from ralmspec_plugins.workloads import TextState, TextWorkload

STEPS = 40


class Numbered(TextWorkload[TextState]):
    """Asks for the number of each step and a digest of the text; writes what it is given."""

    reads_scores = False

    def query(self, state: TextState) -> str | None:
        number = state.text.count(",")
        return f"{number} {zlib.crc32(state.text.encode())}" if number < STEPS else None

    def extend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        progress.charge(1)
        return state.append(f"{hits[0].passage.id},")


class Far:
    """Finds the passage with the query's text, and encodes in a worker."""

    inline_encode = False
    encode_lanes = 8
    signature = "numbers"

    def encode(self, text: str) -> Query:
        return Query(text, ("of", text))

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        assert all(query.encoding == ("of", query.text) for query in queries)
        return [(Hit(Passage(query.text, ""), None),) for query in queries]


@dataclass
class Guesser:
    """Is right at a share of the steps, drawn by its kind."""

    kind: str
    share: float
    by_text: bool = False
    inline: bool = True

    def __post_init__(self) -> None:
        self.asked: Counter[bool] = Counter()  # by whether the query was encoded

    def right(self, step: int) -> bool:
        return random.Random(f"{self.kind} {step}").random() < self.share

    def guess(self, query: Query) -> Hits:
        self.asked[query.encoding is not None] += 1
        assert self.by_text or query.encoding is not None
        step = int(query.text.split()[0])
        return (Hit(Passage(query.text if self.right(step) else self.kind, ""), None),)

    def learn(self, query: Query, hits: Hits) -> None:
        pass


def both(by_text: float, by_encoding: float, *, inline: bool = True) -> list[Guesser]:
    return [Guesser("text", by_text, by_text=True), Guesser("vector", by_encoding, inline=inline)]


def simulated(
    speculators: Sequence[Guesser],
    schedule: Any = None,
    *,
    write_s: float = 0.025,
    search_s: float = 0.05,
    encode_s: float = 0.15,
    encode_lanes: int = 8,
    stop_s: float = 0.005,
    stop_encode_s: float = 0.0,
    **chosen: Any,
) -> Answer:
    """Return the answer in virtual time, which is that of the plain loop."""
    latencies = Latencies(
        extend_s=write_s,
        search_s=lambda _: search_s,
        encode_s=encode_s,
        stop_s=stop_s,
        stop_encode_s=stop_encode_s,
    )
    schedule = schedule or Continuous(lanes=8)
    settings = Settings(schedule=schedule, speculators=speculators, **chosen)
    retriever = Far()
    retriever.encode_lanes = encode_lanes
    answer = Simulation(Numbered(), retriever, latencies, settings).run("")
    assert answer == plain(Numbered(), Far(), "")
    assert answer.text.count(",") == STEPS
    return answer
