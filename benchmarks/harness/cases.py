"""What is measured, as data: a store, a model, a text, and the ways to run over them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from ralmspec_plugins.config import Settings
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.scheduling.os3 import GAMMA_LIMIT
from ralmspec_plugins.scheduling.schedules import Continuous, FixedStride, OptimalStride, Schedule
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache

ScheduleKind: TypeAlias = Literal["plain", "fixed", "os3", "continuous"]
Place: TypeAlias = Literal["here", "beside", "remote"]
TextKind: TypeAlias = Literal["trace", "free"]
WorkloadKind: TypeAlias = Literal["interval", "sentences", "one_shot"]

PLAIN_NAME: Final = "plain"
_COUNTS: Final = (
    "requests",
    "concurrency",
    "repetitions",
    "steps",
    "interval",
    "query_tokens",
)
DENSE: Final = ("numpy-flat", "faiss-flat", "faiss-hnsw", "faiss-ivf", "torch-flat")


Speculators: TypeAlias = Sequence[Speculator] | Callable[[], Sequence[Speculator]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to run a request.

    Args:
        name: as it stands in tables.
        kind: the schedule's.
        stride: of "fixed".
        overlap: whether "fixed" and "os3" write on while a batch is out (the paper's +A).
        gamma_limit: of "os3": the highest guess rate that it believes in.
        lanes: of "continuous".
        window: of "continuous".
        prefetch: hits that a verification brings to the pool (the paper's +P).
        capacity: passages in the pool.
        eviction: what leaves a full pool.
        shared: whether all requests of a repetition share the pool.
        replica: whether a local index guesses.
        alone: whether the request's cache guesses alone, as with the paper's schedules; else what
            the step before was given is guessed while a query is being encoded.
        switch_interval_s: how often Python's threads take turns while a request runs ahead;
            `None` is Python's own interval.
    """

    name: str
    kind: ScheduleKind = "continuous"
    stride: int = 3
    overlap: bool = False
    gamma_limit: float = GAMMA_LIMIT
    lanes: int = 1
    window: int = 64
    prefetch: int | None = None
    capacity: int = 1000
    eviction: str = "lru"
    shared: bool = False
    replica: bool = False
    alone: bool = False
    switch_interval_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse a schedule that there is not, and speculators that do not go together.

        Raises:
            ConfigError: the message says which there are.
        """
        if self.kind not in get_args(ScheduleKind):
            known = ", ".join(get_args(ScheduleKind))
            raise ConfigError(f"unknown schedule {self.kind!r}; known are {known}")
        if self.shared and self.replica:
            raise ConfigError(f"{self.name!r}: with a replica each way has a pool of its own")

    @property
    def schedule(self) -> Schedule:
        """The schedule itself."""
        if self.kind == "fixed":
            return FixedStride(stride=self.stride, overlap=self.overlap)
        if self.kind == "os3":
            return OptimalStride(overlap=self.overlap, gamma_limit=self.gamma_limit)
        return Continuous(window=self.window, lanes=self.lanes)

    @property
    def guesses_alone(self) -> bool:
        """Whether the request's cache guesses alone."""
        return self.alone or self.kind in ("fixed", "os3")

    def settings(self, speculators: Speculators = ()) -> Settings:
        """Give the engine's settings.

        Args:
            speculators: pool and replica, where the arm has a replica; a request's cache, where
                the schedule is the paper's.
        """
        if self.kind == "plain":
            return Settings(speculate=False)
        given: dict[str, Any] = {
            "schedule": self.schedule,
            "prefetch": self.prefetch,
            "switch_interval_s": self.switch_interval_s,
        }
        if self.replica or (self.guesses_alone and not self.shared and speculators):
            return Settings(**given, speculators=speculators)
        if self.shared:
            pool = SharedPassageCache(capacity=self.capacity, eviction=self.eviction)
            return Settings(**given, pool=pool)
        return Settings(**given, capacity=self.capacity, eviction=self.eviction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The retriever of a case.

    Args:
        backend: its name, as in `open_retriever`.
        size: passages; the real ones are padded to so many.
        k: passages for each query.
        place: "here", in this process; "beside", scanning in a process of its own on a core of
            its own; "remote", in another process that answers after `wait_s`, many at once.
        wait_s: what is added to each round trip, and said so wherever it counts.
        threads: for the scan of "numpy-flat".
        settings: of the backend (`search_list`, `probes`, ...), as pairs.
    """

    backend: str = "numpy-flat"
    size: int = 0
    k: int = 1
    place: Place = "here"
    wait_s: float = 0.0
    threads: int | None = 1
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be served.

        Raises:
            ConfigError: the message says what to do.
        """
        if self.place not in get_args(Place):
            raise ConfigError(
                f"unknown place {self.place!r}; known are {', '.join(get_args(Place))}"
            )
        if self.place != "here" and self.backend != "numpy-flat":
            raise ConfigError(
                f"only numpy-flat is served from another process, got {self.backend!r}; "
                "measure it with place='here'"
            )
        if self.place == "beside" and self.wait_s:
            raise ConfigError("a store beside scans for as long as it takes; use place='remote'")

    @property
    def told(self) -> str:
        """Say what it is, in a few words."""
        words = [self.backend, f"{self.size:,} passages" if self.size else "the real passages"]
        if self.place == "beside":
            words.append("in a process of its own")
        if self.wait_s:
            ms = f"{1000 * self.wait_s:g} ms"
            words.append(f"{ms} away" if self.place == "remote" else f"{ms} added to each search")
        return ", ".join([*words, f"k = {self.k}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Some requests over one store with one model, in several ways.

    Args:
        name: of its row in the report.
        store: what is searched.
        model: "demo", "random:4x256" (layers x width, drawn weights), or a Hugging Face name.
        text: "trace": real articles are written, by real passes of the model; "free": the
            model's own words.
        arms: the ways; the plain loop comes first by itself.
        workload: when it is asked.
        requests: different ones.
        concurrency: requests that are answered at once, over one model.
        repetitions: of all requests, each time with pools and measured costs new.
        steps: retrievals in a request, or the most of them.
        interval: tokens between them.
        query_tokens: the last tokens that a query is made of.
        about: what the case is to show.
    """

    name: str
    store: Store
    arms: tuple[Arm, ...]
    model: str = "random:4x256"
    text: TextKind = "trace"
    workload: WorkloadKind = "interval"
    requests: int = 5
    concurrency: int = 1
    repetitions: int = 3
    steps: int = 32
    interval: int = 4
    query_tokens: int = 32
    about: str = ""

    def __post_init__(self) -> None:
        """Refuse counts and names without a meaning.

        Raises:
            ConfigError: the message says which.
        """
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.workload not in get_args(WorkloadKind):
            known = ", ".join(get_args(WorkloadKind))
            raise ConfigError(f"unknown workload {self.workload!r}; known are {known}")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or PLAIN_NAME in names:
            raise ConfigError(f"the arms of {self.name!r} need different names, got {names}")
        if any(arm.replica for arm in self.arms) and self.store.backend not in DENSE:
            raise ConfigError(f"{self.name!r}: a replica needs a dense store")

    def with_counts(self, requests: int | None, repetitions: int | None) -> "Case":
        """Give the same with other counts, where they are given."""
        return replace(
            self,
            requests=self.requests if requests is None else requests,
            repetitions=self.repetitions if repetitions is None else repetitions,
        )

    def with_model(self, model: str | None) -> "Case":
        """Give the same with another model, where one is given."""
        return self if model is None else replace(self, model=model)

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return asdict(self)


# The suites of `python -m benchmarks`: which cases are measured, from a few minutes to hours.


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
"""The settings of RaLMSpec's tables: prefetching, OS3, asynchronous verification."""

AGAIN: Final = Arm(name="plain again", kind="plain")
"""What a ratio of 1 looks like on the machine at hand."""

CONTINUOUS: Final = Arm(name="continuous")
CONTINUOUS_WIDE: Final = Arm(name="continuous, P256", prefetch=256)
SHARED: Final = Arm(name="continuous, shared pool", shared=True)
REPLICA: Final = Arm(name="continuous, replica", replica=True)
ALONE: Final = Arm(name="continuous, the cache alone", alone=True)
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
    encoding = Case(
        name="encoder here, store 50 ms away",
        about="The encoder computes in the model's process: what is written meanwhile delays it.",
        store=Store(place="remote", wait_s=0.05),
        arms=(lanes(CONTINUOUS, 8), lanes(ALONE, 8), AGAIN),
        requests=10,
        repetitions=2,
    )
    short = [
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
    return [*short, encoding]


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
