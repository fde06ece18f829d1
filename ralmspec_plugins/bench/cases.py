"""What is measured, as data: a store, a model, a text, and the ways to run over them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from ralmspec_plugins.config import Settings
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.schedule import Continuous, FixedStride, OptimalStride, Schedule
from ralmspec_plugins.speculation.shared import SharedPool
from ralmspec_plugins.stride import GAMMA_LIMIT

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
        switch_interval_s: how often Python's threads take turns while a request runs ahead.
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
    switch_interval_s: float = 0.0005

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

    def settings(self, speculators: Sequence[Speculator] = ()) -> Settings:
        """Give the engine's settings.

        Args:
            speculators: pool and replica, where the arm has a replica.
        """
        if self.kind == "plain":
            return Settings(speculate=False)
        given: dict[str, Any] = {
            "schedule": self.schedule,
            "prefetch": self.prefetch,
            "switch_interval_s": self.switch_interval_s,
        }
        if self.replica:
            return Settings(**given, speculators=tuple(speculators))
        if self.shared:
            pool = SharedPool(capacity=self.capacity, eviction=self.eviction)
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
