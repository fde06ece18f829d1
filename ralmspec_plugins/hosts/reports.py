"""What an answer took, as plain values: replies are kept in checkpoints and sent as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final, TypedDict

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.hosts.text_draft import Usage, draft_of
from ralmspec_plugins.types import Answer, Outcome, Span, Stats

REPORT: Final = "ralmspec"  # the key of the report in a host's reply


class Report(TypedDict):
    """What an answer took; `stats_in` makes a `Stats` of it again."""

    stats: dict[str, Any]  # the fields of `ralmspec_plugins.Stats`
    queries: list[str]  # what was asked of the retriever, in order
    usage: dict[str, int] | None  # of the calls that made the answer; those dropped are not in it


def report_of(answer: Answer) -> Report:
    """Make the report of an answer."""
    usage: Usage | None = getattr(draft_of(answer.state), "usage", None)
    return Report(
        stats=_plain(answer.stats),
        queries=[step.query.text for step in answer.retrieved],
        usage=None if usage is None or usage == Usage() else asdict(usage),
    )


def stats_in(reply: Mapping[str, Any] | None, what: str) -> Stats:
    """Make the statistics under `REPORT` an object again, for its computed numbers and pictures.

    Args:
        reply: what the report stands in.
        what: what it was expected to be, for the error.

    Raises:
        InputError: there is no report.
    """
    try:
        values = (reply or {})[REPORT]["stats"]
        spans = [Span(**{**one, "outcome": Outcome(one["outcome"])}) for one in values["timeline"]]
        sizes = tuple(values["batch_sizes"])
        return Stats(**{**values, "batch_sizes": sizes, "timeline": tuple(spans)})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"expected {what} with its report under {REPORT!r}, got {reply!r:.500}"
        ) from error


def _plain(stats: Stats) -> dict[str, Any]:
    spans = [{**asdict(span), "outcome": span.outcome.value} for span in stats.timeline]
    return {
        **asdict(replace(stats, timeline=())),
        "batch_sizes": list(stats.batch_sizes),
        "timeline": spans,
    }
