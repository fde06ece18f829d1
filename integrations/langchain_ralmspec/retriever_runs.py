"""The run of each input of a retriever's batch, as handlers and traces see it.

The host's `batch` runs single calls in threads, each with a run of its own. A
native batch is one call, and still each input has its run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, patch_config

from langchain_ralmspec.asked import Calls
from langchain_ralmspec.passages import documents_of
from ralmspec_plugins.adapters.retriever import all_or_first_error
from ralmspec_plugins.types import Hits

Run: TypeAlias = CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun
Outcome: TypeAlias = list[Document] | Exception

_config: ContextVar[RunnableConfig | None] = ContextVar("config", default=None)


@contextmanager
def calling(config: RunnableConfig) -> Iterator[None]:
    """Let the methods that the host calls in between know the call's config."""
    token = _config.set(config)
    try:
        yield
    finally:
        _config.reset(token)


def config_of_call() -> RunnableConfig:
    """Give the config of the call that is running."""
    return _config.get() or ensure_config()


def child_calls(config: RunnableConfig, run: Run | None) -> Calls:
    """Have runs of the wrapped retriever be children of a run; heard by nobody if there is none."""

    def child() -> tuple[RunnableConfig, Any]:
        manager = CallbackManager(handlers=[]) if run is None else run.get_child()
        return patch_config(config, callbacks=manager), None

    return child


def started(
    retriever: BaseRetriever,
    inputs: Sequence[str],
    configs: Sequence[RunnableConfig],
    kwargs: Mapping[str, Any],
) -> list[CallbackManagerForRetrieverRun]:
    """Open a run for each input."""
    runs = []
    for text, config in zip(inputs, configs, strict=True):
        manager = CallbackManager.configure(**_manager_arguments(retriever, config, kwargs))
        run = manager.on_retriever_start(None, text, **_run_arguments(retriever, config, kwargs))
        runs.append(run)
    return runs


def ended(runs: Sequence[CallbackManagerForRetrieverRun], outcomes: Sequence[Outcome]) -> None:
    """Close each run with what came of it."""
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, Exception):
            run.on_retriever_error(outcome)
        else:
            run.on_retriever_end(outcome)


def broken_off(runs: Sequence[CallbackManagerForRetrieverRun], error: BaseException) -> None:
    """Close all runs: nothing will come of them."""
    for run in runs:
        run.on_retriever_error(error)


def outcomes_of(answers: Sequence[Hits | Exception]) -> list[Outcome]:
    """Make each answer the caller's own documents."""
    return [answer if isinstance(answer, Exception) else documents_of(answer) for answer in answers]


def given(outcomes: Sequence[Outcome], *, return_exceptions: bool) -> list[Any]:
    """Give a batch's outcomes as the host does.

    Raises:
        Exception: the first error, unless they are to be returned.
    """
    return list(outcomes) if return_exceptions else all_or_first_error(outcomes)


async def astarted(
    retriever: BaseRetriever,
    inputs: Sequence[str],
    configs: Sequence[RunnableConfig],
    kwargs: Mapping[str, Any],
) -> list[AsyncCallbackManagerForRetrieverRun]:
    """Open a run for each input."""
    runs = []
    for text, config in zip(inputs, configs, strict=True):
        manager = AsyncCallbackManager.configure(**_manager_arguments(retriever, config, kwargs))
        run = await manager.on_retriever_start(
            None, text, **_run_arguments(retriever, config, kwargs)
        )
        runs.append(run)
    return runs


async def aended(
    runs: Sequence[AsyncCallbackManagerForRetrieverRun], outcomes: Sequence[Outcome]
) -> None:
    """Close each run with what came of it."""
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, Exception):
            await run.on_retriever_error(outcome)
        else:
            await run.on_retriever_end(outcome)


async def abroken_off(
    runs: Sequence[AsyncCallbackManagerForRetrieverRun], error: BaseException
) -> None:
    """Close all runs: nothing will come of them."""
    for run in runs:
        await run.on_retriever_error(error)


def _manager_arguments(
    retriever: BaseRetriever, config: RunnableConfig, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    of_call = {key: value for key, value in kwargs.items() if key != "run_id"}
    return {
        "inheritable_callbacks": config.get("callbacks"),
        "verbose": kwargs.get("verbose", False),
        "inheritable_tags": config.get("tags"),
        "local_tags": retriever.tags,
        "inheritable_metadata": {
            **(config.get("metadata") or {}),
            **retriever._get_ls_params(**of_call),  # noqa: SLF001 as BaseRetriever.invoke does
        },
        "local_metadata": retriever.metadata,
    }


def _run_arguments(
    retriever: BaseRetriever, config: RunnableConfig, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": config.get("run_name") or retriever.get_name(),
        "run_id": kwargs.get("run_id"),
    }
