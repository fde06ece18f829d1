"""Opens a model beside its datastore, as the options of `ralmspec knn` say."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ralmspec_plugins.cli.assemble import demo_model, use_threads
from ralmspec_plugins.cli.output import notes
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn import Datastore, open_search
from ralmspec_plugins.knn.search import GUESSED, NeighbourSearch

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel


class SearchName(StrEnum):
    """How neighbours are found: a test holds this against `knn.search.SEARCHES`."""

    EXACT = "exact"
    HNSW = "hnsw"
    IVFPQ = "ivfpq"


class ReplicaName(StrEnum):
    """How they are guessed: with a search that takes far less than the exact one."""

    HNSW = "hnsw"
    IVFPQ = "ivfpq"


Store = Annotated[Path, typer.Argument(help="The folder of a datastore (see: knn build).")]
K = Annotated[int, typer.Option("--k", min=1, help="Neighbours of each token.")]
Search = Annotated[SearchName, typer.Option(help="How they are found.")]
Index = Annotated[
    Path | None,
    typer.Option(help="hnsw, ivfpq: the folder of the index, built and saved if it is not there."),
]
Rerank = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="hnsw, ivfpq: of so many that the index finds the k nearest are taken, measured "
        "exactly; 0 takes the index's own distances. [default: k; ivfpq: 16 k, up to 1024]",
    ),
]
Replica = Annotated[
    ReplicaName | None,
    typer.Option(help="Guess with this search of the same datastore, and not from the cache."),
]
ReplicaIndex = Annotated[
    Path | None, typer.Option(help="The folder of its index, built and saved if it is not there.")
]
DistanceTemperature = Annotated[
    float, typer.Option(help="Of the neighbours' distances: above 1 the far ones say more.")
]
AnyModel = Annotated[
    bool,
    typer.Option(
        "--any-model", help="Allow other weights than those that made the keys: a precision, say."
    ),
]


@dataclass(frozen=True, slots=True)
class Finding:
    """How neighbours are found or guessed, and how many."""

    name: SearchName
    k: int
    index: Path | None
    rerank: int | None = None

    def search(self, datastore: Datastore) -> NeighbourSearch:
        """Open the search, or build its index.

        Raises:
            ConfigError: settings of an index for a search that has none.
            MissingExtraError: its library is not installed.
        """
        given = {"index": self.index, "rerank": self.rerank}
        given = {name: value for name, value in given.items() if value is not None}
        if given and self.name is SearchName.EXACT:
            foreign = " and ".join(f"--{name}" for name in given)
            raise ConfigError(f"{foreign} belongs to --search hnsw and ivfpq; exact has no index")
        return open_search(self.name.value, datastore, k=self.k, **given)


def replica(name: ReplicaName | None, k: int, index: Path | None) -> Finding | None:
    """Say how neighbours are guessed, if not from the cache: fewer than are found will do.

    Raises:
        ConfigError: an index without a search that has one.
    """
    if name is None:
        if index is not None:
            raise ConfigError("--replica-index belongs to --replica hnsw and ivfpq")
        return None
    return Finding(SearchName(name.value), min(k, GUESSED), index)


def cache_settings(
    search: SearchName,
    replica: ReplicaName | None,
    *,
    following: int | None,
    followed: int | None,
    capacity: int | None,
    prefetch: int | None,
) -> dict[str, int]:
    """Give those settings of the cache that were given.

    Raises:
        ConfigError: one that has no effect.
    """
    asked = {"following": following, "followed": followed, "capacity": capacity}
    given = {name: value for name, value in asked.items() if value is not None}
    if prefetch is not None and search is not SearchName.EXACT:
        raise ConfigError("--prefetch belongs to --search exact; the others find k, and no more")
    foreign = [f"--{name}" for name in given] + ["--prefetch"] * (prefetch is not None)
    if replica is not None and foreign:
        raise ConfigError(
            f"{', '.join(foreign)} belongs to the cache, and --replica guesses without one"
        )
    return given


def open_model(
    store: Path,
    model: str | None,
    threads: int | None,
    found_by: Finding,
    guessed_by: Finding | None = None,
    **settings: Any,
) -> "KNNLanguageModel":
    """Open a datastore, and load its model, or the demo's.

    Args:
        store: the folder.
        model: a folder, or a name on the hub; `None` for the demo's.
        threads: for torch; one for the demo's model unless given.
        found_by: how neighbours are found.
        guessed_by: how they are guessed; from the cache by default.
        settings: of the `KNNLanguageModel`.

    Raises:
        IndexFileError: the folder holds no datastore, or a damaged one.
        ModelError: there is no such model, or it does not fit the datastore.
        MissingExtraError: transformers or torch is not installed.
    """
    datastore = Datastore.open(store)  # what is wrong with it is known before a model is loaded
    use_threads(threads, model)
    from ralmspec_plugins.knn import KNNLanguageModel

    with notes().status("loading model and datastore"):
        name = demo_model() if model is None else model
        if guessed_by is not None:
            settings["replica"] = guessed_by.search(datastore)
        search = found_by.search(datastore)
        return KNNLanguageModel.from_pretrained(name, datastore, search=search, **settings)
