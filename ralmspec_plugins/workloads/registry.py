"""The workloads by name, for engines, hosts and the command line."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel, Workload
from ralmspec_plugins.workloads.flare import Flare
from ralmspec_plugins.workloads.interval import Interval
from ralmspec_plugins.workloads.iter_retgen import IterRetGen
from ralmspec_plugins.workloads.multi_hop import MultiHop
from ralmspec_plugins.workloads.one_shot import OneShot
from ralmspec_plugins.workloads.sentences import Sentences

WorkloadName: TypeAlias = Literal[
    "one_shot", "sentences", "interval", "flare", "iter_retgen", "multi_hop"
]
WorkloadMaker: TypeAlias = Callable[[LanguageModel[Any]], Workload[Any]]

WORKLOADS: Final[Mapping[str, Callable[..., Workload[Any]]]] = {
    "one_shot": OneShot,
    "sentences": Sentences,
    "interval": Interval,
    "flare": Flare,
    "iter_retgen": IterRetGen,
    "multi_hop": MultiHop,
}
assert tuple(WORKLOADS) == get_args(WorkloadName)


def workload_of(
    chosen: str | WorkloadMaker, lm: LanguageModel[Any], **options: Any
) -> Workload[Any]:
    """Return the workload of a name, or the result of a function that makes one.

    Args:
        chosen: a name, with "-" or "_", or a function of the model.
        lm: the language model.
        options: settings by name; those that a named workload does not have are ignored.

    Raises:
        ConfigError: there is no workload of this name.
    """
    if not isinstance(chosen, str):
        return chosen(lm, **options)
    make = WORKLOADS.get(chosen.replace("-", "_"))
    if make is None:
        raise ConfigError(f"unknown workload {chosen!r}; known are {', '.join(WORKLOADS)}")
    known = inspect.signature(make).parameters
    return make(lm, **{name: value for name, value in options.items() if name in known})
