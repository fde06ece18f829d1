"""`python -m benchmarks encoders`: what is hidden of a query's encoding, against the simulation.

A request asks a store that is 50 ms away, and needs each query's encoding for that. While a query
is encoded, the next segment is written on a guess by the query's text; a guess by its encoding
follows. How often either is right is given, so that the same request runs in virtual time: what an
engine reaches is compared with what `Simulation` says that the schedule can reach.

    python -m benchmarks encoders --out results/encoders.json --page results/encoders.md

Rows that the file has are not measured again. Real: threads, waits, the loop, and for the hosted
encoder a process of its own that is asked over HTTP. Not real: segments, store and encoder wait.
"""

import gc
import http.client
import json
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from benchmarks.never_slower.parts import SLICE_S, Pace
from benchmarks.simulated.numbering import Guesser, Numbering, Numbers, NumberStore
from ralmspec_plugins import Continuous, Engine, Hits, Latencies, Query, Settings, Simulation
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Answer

WRITE_S, SEARCH_S = 0.025, 0.05
LOCAL_S, HOSTED_S = 0.02, 0.15
SENTENCE_S, NEAR_S = 0.3, 0.001  # a hosted model's segment, and a search in this process
LANES: Final = 8
SHARE: Final = 0.9  # of the simulated speedup that is the goal
FAST: Final = (
    2.0  # times plain, over a hosted encoder where guesses by the text are right so often:
)
OFTEN: Final = 0.58


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        name: of the row.
        hosted: whether the encoder answers from another process, after 150 ms instead of 20.
        by_text: how often a guess by the text is right.
        by_encoding: how often one by the encoding is; `None` if there is none.
        steps: of a request.
        write_s: the seconds of a segment.
        search_s: the seconds of a search.
    """

    name: str
    hosted: bool
    by_text: float
    by_encoding: float | None
    steps: int
    write_s: float = WRITE_S
    search_s: float = SEARCH_S

    @property
    def encode_s(self) -> float:
        """The seconds of an encoding."""
        return HOSTED_S if self.hosted else LOCAL_S


class WaitingModel(Numbering):
    """Waits for each segment; one that is not needed stops after 5 ms at most."""

    def __init__(self, steps: int, write_s: float) -> None:
        """Write so many segments, in so many seconds each."""
        super().__init__(steps)
        self._write_s = write_s

    def extend(self, state: Numbers, hits: Hits, progress: Progress) -> Numbers:
        """Append the passage's id, after the wait."""
        Pace(wait_s=self._write_s).spend(progress)
        return super().extend(state, hits, progress)


class FarStore(NumberStore):
    """Answers after a wait; encodes by a function that waits."""

    encode_lanes = LANES

    def __init__(self, encode: Callable[[str], None], search_s: float) -> None:
        """Open a store that answers after so many seconds, whose encoder this is."""
        self._encode, self._search_s = encode, search_s

    def encode(self, text: str) -> Query:
        """Return the query, as soon as the encoder has answered."""
        self._encode(text)
        return super().encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return each query's passage, after the wait."""
        time.sleep(self._search_s)
        return super().search(queries)


class SimulatedStore(NumberStore):
    """As many lanes of the encoder; its times are given."""

    encode_lanes = LANES


class HostedEncoder:
    """An encoder in a process of its own, asked over HTTP; each thread has its connection."""

    def __init__(self, port: int) -> None:
        """Ask this port of the machine."""
        self._port = port
        self._own = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def __call__(self, text: str) -> None:
        """Wait for the answer.

        Raises:
            AssertionError: it is not that to this text.
        """
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self._port)
            self._opened.append(self._own.connection)
        self._own.connection.request("POST", "/", body=text.encode())
        assert self._own.connection.getresponse().read() == text.encode()

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._opened:
            connection.close()


class _Encoding(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(HOSTED_S)
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def _serve(told: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Encoding)
    told.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def hosted() -> Iterator[HostedEncoder]:
    """Start the encoder's process, and end it."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        with closing(HostedEncoder(ours.recv())) as encoder:
            yield encoder
    finally:
        process.terminate()
        process.join()


def rows(*, small: bool = False) -> list[Row]:
    """Return all rows; small ones only show that everything runs."""
    both = ((0.3, 0.9), (0.5, 0.9), (0.7, 0.9), (0.9, 0.97))
    hosted = (
        *((share, None) for share in (0.3, OFTEN, 0.75, 0.9)),
        *((0.46, 0.96), (OFTEN, 0.96), (0.78, 0.99)),  # the first and the last: of real traces
    )
    steps = 4 if small else 40
    return [
        *(
            Row(
                name=f"waiting encoder, {by_text:.0%} and {by_encoding:.0%}",
                hosted=False,
                by_text=by_text,
                by_encoding=by_encoding,
                steps=steps,
            )
            for by_text, by_encoding in both
        ),
        *(
            Row(
                name=f"hosted encoder, {by_text:.0%}"
                + ("" if by_encoding is None else f" and {by_encoding:.0%}"),
                hosted=True,
                by_text=by_text,
                by_encoding=by_encoding,
                steps=steps,
            )
            for by_text, by_encoding in hosted
        ),
        *(
            Row(
                name=f"hosted encoder, a store in this process, sentences, {share:.0%}",
                hosted=True,
                by_text=share,
                by_encoding=None,
                steps=steps // 2,
                write_s=SENTENCE_S,
                search_s=NEAR_S,
            )
            for share in (0.46, 0.78)  # of real traces
        ),
    ]


def speculators(row: Row, seed: int) -> list[Guesser]:
    """Return the guessers of one request: that by the text first."""

    def drawn(share: float, kind: str) -> Callable[[int], bool]:
        dice, right = random.Random(f"{seed} {kind}"), round(share * row.steps)
        return set(dice.sample(range(row.steps), right)).__contains__

    found = [Guesser(True, drawn(row.by_text, "text"))]
    if row.by_encoding is not None:
        found.append(Guesser(False, drawn(row.by_encoding, "encoding")))
    return found


def _settings(row: Row, seed: int, *, speculate: bool) -> Settings:
    return Settings(
        schedule=Continuous(lanes=LANES),
        speculators=speculators(row, seed),
        speculate=speculate,
    )


def simulated_s(row: Row, seed: int, *, speculate: bool) -> float:
    """Return the seconds of a request in virtual time."""
    latencies = Latencies(
        extend_s=row.write_s,
        search_s=lambda _: row.search_s,
        encode_s=row.encode_s,
        stop_s=SLICE_S,
    )
    settings = _settings(row, seed, speculate=speculate)
    return (
        Simulation(Numbering(row.steps), SimulatedStore(), latencies, settings).run("").stats.wall_s
    )


def measure(row: Row, repetitions: int, encode: Callable[[str], None]) -> dict[str, Any]:
    """Answer a request plainly and speculatively in turn, each with its own draws of guesses.

    Raises:
        AssertionError: the answers differ, or are empty.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    expected: list[float] = []
    right = guesses = 0
    for seed in range(repetitions):
        answers: list[Answer] = []
        for speculate in (False, True) if seed % 2 else (True, False):
            settings = _settings(row, seed, speculate=speculate)
            gc.collect()  # not in the middle of the run
            model, store = WaitingModel(row.steps, row.write_s), FarStore(encode, row.search_s)
            with Engine(model, store, settings) as engine:
                answers.append(engine.run(""))
            seconds[speculate].append(answers[-1].stats.wall_s)
            right += answers[-1].stats.accepted
            guesses += answers[-1].stats.guesses
        assert answers[0] == answers[1], row.name
        assert answers[0].text.count(",") == row.steps - 1, row.name
        virtual = [simulated_s(row, seed, speculate=speculate) for speculate in (False, True)]
        expected.append(virtual[0] / virtual[1])
    return {
        **asdict(row),
        "plain_s": seconds[False],
        "speculative_s": seconds[True],
        "simulated": expected,
        "guesses": guesses,
        "right": right,
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return the medians of a row, and whether it reaches its goal."""
    speed = median(
        plain / ours for plain, ours in zip(found["plain_s"], found["speculative_s"], strict=True)
    )
    expected = median(found["simulated"])
    far = found.get("search_s", SEARCH_S) == SEARCH_S
    fast = found["hosted"] and far and found["by_text"] >= OFTEN
    return {
        "speed": speed,
        "simulated": expected,
        "share": speed / expected,
        "reached": speed >= FAST if fast else speed >= SHARE * expected,
        "goal": f"{FAST} times plain" if fast else f"{SHARE:.0%} of the simulation",
    }


def page(result: dict[str, Any]) -> str:
    """Return the table."""
    told = result["surroundings"]
    head = [
        "row",
        "plain, s",
        "as fast as plain (least, most)",
        "simulated",
        "share",
        "guesses right",
    ]
    cells = []
    for found in result["rows"]:
        row = summary(found)
        ratios = sorted(
            plain / ours
            for plain, ours in zip(found["plain_s"], found["speculative_s"], strict=True)
        )
        cells.append(
            [
                found["name"],
                f"{median(found['plain_s']):.2f}",
                f"{row['speed']:.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})",
                f"{row['simulated']:.2f}",
                f"{row['share']:.0%}",
                f"{found['right']} of {found['guesses']}",
                f"{row['goal']}: {'yes' if row['reached'] else 'no'}",
            ]
        )
    where = f"{told['date']}, commit {told['commit']}, {told['machine']}"
    load = f"load before: {told['load_before']:.1f}"
    parts = ["# Encodings, hidden\n", f"{where}; {load}.\n", _ABOUT, table([*head, "goal"], cells)]
    return "\n".join(parts) + "\n"


_ABOUT: Final = f"""\
Segments of {1000 * WRITE_S:.0f} ms, a store {1000 * SEARCH_S:.0f} ms away, an encoder of \
{1000 * LOCAL_S:.0f} ms, or a hosted one of {1000 * HOSTED_S:.0f} ms in another process over HTTP; k = 1.
Sentences: segments of {1000 * SENTENCE_S:.0f} ms, and searches of {1000 * NEAR_S:.0f} ms.
Real: threads, waits, the loop.
Not real: segments, store and encoder wait, and guesses by the text, and by the encoding, are *forced* to be right as often as the row says, in virtual time at the same steps.
"""  # noqa: E501 a line of the page is a sentence


def encoders(
    out: Annotated[Path, typer.Option(help="The file for the results.")],
    page_to: Annotated[Path | None, typer.Option("--page", help="The file for the page.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Requests of each row.")] = 5,
    small: Annotated[
        bool, typer.Option(help="Small rows, which show that everything runs.")
    ] = False,
) -> None:
    """Measure what is hidden of encodings that wait, against the simulation."""
    result = (
        json.loads(out.read_text())
        if out.exists()
        else {"surroundings": surroundings(), "rows": []}
    )
    with hosted() as service:
        for row in rows(small=small):
            if any(one["name"] == row.name for one in result["rows"]):
                continue
            encode: Callable[[str], None] = service if row.hosted else lambda _: time.sleep(LOCAL_S)
            result["rows"].append(measure(row, repetitions, encode))
            write_whole(out, json.dumps(result).encode())
            typer.echo(json.dumps({row.name: summary(result["rows"][-1])}), err=True)
    told = page(result)
    if page_to is not None:
        write_whole(page_to, told.encode())
    typer.echo(told)
