"""The report of an answer, passed to a handler or included in the reply, and its statistics."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from typing_extensions import TypedDict

from ralmspec_plugins import Stats
from ralmspec_plugins.adapters.events import REPORT, stats_in
from ralmspec_plugins.errors import InputError

REPORT_EVENT: Final = f"{REPORT}.report"  # the custom event that ends a request


class DroppedCalls(TypedDict):
    """Calls of the model that were made, and possibly paid for, but are not in the answer."""

    calls: int  # including those that failed or were stopped
    unreported: int  # of these, those without a usage when the answer was complete
    usage: dict[str, int] | None  # of the others


class Report(TypedDict):
    """The statistics, queries and token usage of an answer.

    This is `ralmspec_plugins.adapters.events.Report` in a form that pydantic supports in an
    output schema; `stats_of` converts it back to `Stats`.
    """

    stats: dict[str, Any]  # the fields of `ralmspec_plugins.Stats`
    queries: list[str]  # the retriever's queries, in order
    usage: dict[str, int] | None  # of the calls that made the answer
    dropped: DroppedCalls | None  # of all other calls; `None` with `direct=True`


class ReportHandler(BaseCallbackHandler):
    """Collects the reports of requests.

    Given as one of the `callbacks` of a call, it receives one report for each answered request,
    in the order in which they ended. Use one handler per call, or per config of a `batch`,
    to separate them.

    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> from langchain_core.language_models import FakeListLLM
    >>> from langchain_core.vectorstores import InMemoryVectorStore
    >>> from langchain_ralmspec import SpeculativeRAG
    >>> store = InMemoryVectorStore.from_texts(["red fox"], DeterministicFakeEmbedding(size=8))
    >>> llm = FakeListLLM(responses=["It is red."])
    >>> rag = SpeculativeRAG.from_llm(llm, store.as_retriever(), workload="one_shot")
    >>> handler = ReportHandler()
    >>> rag.invoke("fox?", {"callbacks": [handler]})["answer"]
    'It is red.'
    >>> handler.reports[0]["queries"], stats_of(handler).searches
    (['fox?'], 1)
    """

    run_inline = True
    ignore_agent = ignore_chain = ignore_llm = ignore_chat_model = ignore_retriever = True

    def __init__(self) -> None:
        """Create a handler without reports."""
        self.reports: list[Report] = []

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **_about: Any) -> None:
        """Append a report."""
        if name == REPORT_EVENT:
            self.reports.append(data)


def stats_of(taken: ReportHandler | Mapping[str, Any]) -> Stats:
    """Return the statistics of an answer, with their computed values and timeline.

    Args:
        taken: the source of the report: a `ReportHandler`, whose last report is used; one of its
            reports; a reply of `SpeculativeRAG(report=True)`; a `KNNLLM`'s `generation_info`.

    Raises:
        InputError: there is no report in it.
    """
    if isinstance(taken, ReportHandler):
        if not taken.reports:
            raise InputError(
                "this ReportHandler has received no report of an answered request; pass it as one "
                "of the callbacks of the call, and read a stream to its end"
            )
        taken = taken.reports[-1]
    if isinstance(taken, Mapping) and REPORT not in taken and taken.keys() >= {"stats", "queries"}:
        taken = {REPORT: taken}
    return stats_in(
        taken, "a ReportHandler, one of its reports, or a reply of SpeculativeRAG(report=True)"
    )
