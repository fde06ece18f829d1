"""How a retriever announces its runs to handlers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable


@dataclass(frozen=True, slots=True)
class Voice:
    """How a retriever's run is announced: by name, tags and metadata, as `invoke` would."""

    name: str
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    own_tags: tuple[str, ...] = ()  # of this run alone, not of those inside
    own_metadata: Mapping[str, Any] | None = None


def voice_of(retriever: Runnable[Any, Any], config: RunnableConfig) -> Voice:
    """Find out how a retriever would announce itself in a call with this config."""
    bound = RunnableConfig()
    while True:
        if isinstance(retriever, RunnableBindingBase):
            bound = merge_configs(retriever.config, bound)
            retriever = retriever.bound
        elif isinstance(retriever, DynamicRunnable):
            retriever, _ = retriever.prepare(config)
        else:
            break
    params: dict[str, Any] = getattr(retriever, "_get_ls_params", dict)()
    return Voice(
        name=bound.get("run_name") or retriever.get_name(),
        tags=tuple(bound.get("tags") or ()),
        metadata={**(bound.get("metadata") or {}), **params},
        own_tags=tuple(getattr(retriever, "tags", None) or ()),
        own_metadata=getattr(retriever, "metadata", None),
    )
