"""The suites of `ralmspec bench`: which cases are measured, from a few minutes to hours."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from ralmspec_plugins.bench.cases import Arm, Case, Store

PAPER: Final = (
    Arm(name="base (fixed 3)", kind="fixed", prefetch=1),
    Arm(name="+P(20)", kind="fixed", prefetch=20),
    Arm(name="+P(256)", kind="fixed", prefetch=256),
    Arm(name="+S", kind="os3", prefetch=1),
    Arm(name="+A", kind="fixed", overlap=True, prefetch=1),
    Arm(name="+PS", kind="os3", prefetch=20),
    Arm(name="+SA", kind="os3", overlap=True, prefetch=1),
    Arm(name="+PA", kind="fixed", overlap=True, prefetch=20),
    Arm(name="+PSA", kind="os3", overlap=True, prefetch=20),
)
"""The settings of RaLMSpec's tables: prefetching, OS3, asynchronous verification (PAPERS 1.11)."""

AGAIN: Final = Arm(name="plain again", kind="plain")
"""What a ratio of 1 looks like on the machine at hand."""

CONTINUOUS: Final = Arm(name="continuous")
CONTINUOUS_WIDE: Final = Arm(name="continuous, P256", prefetch=256)
SHARED: Final = Arm(name="continuous, shared pool", shared=True)
REPLICA: Final = Arm(name="continuous, replica", replica=True)
OURS: Final = (CONTINUOUS, CONTINUOUS_WIDE, SHARED)

_SMALL, _LARGE = "random:4x256", "random:6x384"
_IN_PROCESS: Final = {
    "approximate dense": Store(
        backend="faiss-hnsw", size=100_000, settings=(("search_list", 1024),)
    ),
    "sparse": Store(backend="bm25s", size=200_000),
}


def lanes(arm: Arm, count: int) -> Arm:
    """Give an arm with several searches out at a time."""
    return replace(arm, name=f"{arm.name}, {count} lanes", lanes=count)


def quick() -> list[Case]:
    """List what shows the main effects in under three minutes, on any machine, without data."""
    cases = [
        Case(
            name="free text, local store",
            about="The demo's model writes its own words over an invented world.",
            store=Store(backend="numpy-flat"),
            model="demo",
            text="free",
            arms=(PAPER[0], PAPER[-1], CONTINUOUS),
        ),
        Case(
            name="trace, scan beside",
            about="An exact scan in a process of its own; the text is Python's documentation.",
            store=Store(size=200_000, place="beside"),
            arms=(PAPER[0], PAPER[-1], CONTINUOUS, CONTINUOUS_WIDE),
        ),
        Case(
            name="trace, store 50 ms away",
            about="A remote store that answers any number at once.",
            store=Store(place="remote", wait_s=0.05),
            arms=(
                PAPER[-1],
                CONTINUOUS,
                lanes(CONTINUOUS_WIDE, 16),
                lanes(REPLICA, 16),
            ),
        ),
    ]
    return [case.with_counts(requests=2, repetitions=2) for case in cases]


def paper() -> list[Case]:
    """List RaLMSpec's Table 1, what is held against the bound, and requests at once.

    Under an hour on two cores.
    """
    return [*_table_1(), *_beside(), *_remote(), *_at_once()]


def _table_1() -> list[Case]:
    """List exact dense, approximate dense and sparse, each with two sizes of model."""
    stores = {
        "exact dense": (Store(size=1_000_000, place="beside"), 5),
        **{name: (store, 5) for name, store in _IN_PROCESS.items()},
        "exact dense, R/G above 10": (Store(place="remote", wait_s=1.5), 1),
    }
    return [
        Case(
            name=f"{name}, {model}",
            store=store,
            model=model,
            arms=_arms(store),
            requests=requests,
            repetitions=1,
        )
        for name, (store, requests) in stores.items()
        for model in (_SMALL, _LARGE)
    ]


def slower() -> list[Case]:
    """List what shows whether an adaptive schedule is slower than plain, where nothing is hidden.

    Many short requests, so that a slow second of the machine falls on all ways alike.
    """
    adaptive = (*(arm for arm in PAPER if arm.kind == "os3"), *OURS, AGAIN)
    return [
        Case(
            name=f"short requests, {name}, {model}",
            store=store,
            model=model,
            arms=adaptive,
            requests=20,
            repetitions=2,
            steps=10,
        )
        for name, store in _IN_PROCESS.items()
        for model in (_SMALL, _LARGE)
    ]


def _arms(store: Store) -> tuple[Arm, ...]:
    replica = (REPLICA,) if store.backend == "numpy-flat" else ()
    again = (AGAIN,) if store.place == "here" else ()
    return (*PAPER, *OURS, *replica, *again)


def _beside() -> list[Case]:
    """List scans in another process, one core each and one lane."""
    return [
        Case(
            name=f"scan beside, {size:,} passages",
            store=Store(size=size, place="beside"),
            arms=(CONTINUOUS, CONTINUOUS_WIDE),
            repetitions=1 if size > 1_000_000 else 2,
        )
        for size in (100_000, 200_000, 2_000_000)
    ]


def _remote() -> list[Case]:
    """List stores at a distance, with lanes, without a replica and with one."""
    return [
        Case(
            name=f"remote, {1000 * wait_s:g} ms",
            store=Store(place="remote", wait_s=wait_s),
            arms=(lanes(CONTINUOUS_WIDE, 32), lanes(REPLICA, 32)),
            requests=5 if wait_s < 0.5 else 2,
            repetitions=2 if wait_s < 0.1 else 1,
        )
        for wait_s in (0.005, 0.02, 0.06, 0.18, 0.27, 1.0)
    ]


def _at_once() -> list[Case]:
    """List requests that are answered at once: one model, one store, merged searches."""
    return [
        Case(
            name=f"8 requests at once, {name}",
            store=store,
            arms=(CONTINUOUS, SHARED),
            requests=8,
            concurrency=8,
            repetitions=2,
        )
        for name, store in (
            ("scan beside", Store(size=200_000, place="beside")),
            ("store 60 ms away", Store(place="remote", wait_s=0.06)),
        )
    ]


def full() -> list[Case]:
    """List everything but the quick ones: about two hours on two cores."""
    return [*paper(), *ablations(), *slower()]


def ablations() -> list[Case]:
    """List strides, pools, prefetching, intervals, windows, lanes, latencies, sizes, turns."""
    beside = Store(size=200_000, place="beside")
    remote = Store(place="remote", wait_s=0.1)
    strides = tuple(
        Arm(name=f"stride {stride}", kind="fixed", stride=stride, prefetch=20)
        for stride in (1, 2, 4, 8)
    )
    pools = tuple(
        Arm(name=f"{eviction}, {capacity}", capacity=capacity, eviction=eviction, shared=True)
        for capacity in (100, 500, 1000, 2000)
        for eviction in ("lru", "lfu", "fifo")
    )
    prefetches = tuple(
        Arm(name=f"prefetch {width}", prefetch=width) for width in (1, 4, 16, 64, 256)
    )
    windows = tuple(Arm(name=f"window {size}", window=size) for size in (1, 2, 4, 8, 64))
    several = tuple(Arm(name=f"{count} lanes", lanes=count) for count in (1, 2, 4, 8, 32))
    turns = tuple(
        Arm(name=f"turns every {us} us", prefetch=256, switch_interval_s=us / 1e6)
        for us in (100, 500, 1000, 5000)  # the last is Python's own
    )
    measured = [
        Case(name="speculation stride", store=beside, arms=(*strides, PAPER[-1], CONTINUOUS)),
        Case(name="cache size and eviction", store=beside, arms=pools, requests=20),
        Case(name="prefetch", store=beside, arms=prefetches),
        *(
            Case(name=f"interval {tokens}", store=beside, arms=(CONTINUOUS,), interval=tokens)
            for tokens in (1, 2, 4, 8, 16)
        ),
        Case(name="window", store=remote, arms=windows),
        Case(name="lanes", store=remote, arms=several),
        *(
            Case(
                name=f"latency {1000 * wait_s:g} ms",
                store=Store(place="remote", wait_s=wait_s),
                arms=(CONTINUOUS_WIDE, lanes(CONTINUOUS_WIDE, 32), lanes(REPLICA, 32)),
                requests=5 if wait_s < 1 else 1,
            )
            for wait_s in (0.001, 0.01, 0.1, 1.0, 5.0)
        ),
        *(
            Case(
                name=f"{size:,} passages",
                store=Store(size=size, place="beside"),
                arms=(PAPER[0], PAPER[-1], CONTINUOUS_WIDE),
            )
            for size in (10_000, 50_000, 250_000, 1_000_000)
        ),
        Case(name="switch interval", store=Store(size=100_000, place="beside"), arms=turns),
    ]
    return [case.with_counts(requests=None, repetitions=1) for case in measured]


SUITES: Final[Mapping[str, Callable[[], list[Case]]]] = {
    "quick": quick,
    "paper": paper,
    "ablations": ablations,
    "slower": slower,
    "full": full,
}
