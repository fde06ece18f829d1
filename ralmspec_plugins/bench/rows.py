"""The numbers of one run, and the bounds that the plain run beside it says."""

from statistics import fmean
from typing import Any, TypeAlias

from ralmspec_plugins.bench.bounds import Bounds
from ralmspec_plugins.records import Answer
from ralmspec_plugins.stats import Outcome, Span

Row: TypeAlias = dict[str, Any]


def row_of(answer: Answer, plain: Answer) -> Row:
    """Give the numbers of a run, and its bounds, which the plain run beside it says."""
    stats, bounds = answer.stats, bounds_of(plain)
    kept = [span for span in stats.timeline if span.outcome is Outcome.KEPT]
    wasted = [span for span in stats.timeline if span.outcome is not Outcome.KEPT]
    return {
        "wall_s": stats.wall_s,
        "plain_s": plain.stats.wall_s,
        "bound_s": bounds.best_s,
        "bound_guessed_s": bounds.best_guessed_s,
        "step_s": bounds.step_s,
        "search_s": bounds.search_s,
        "steps": stats.segments,
        "round_trips": stats.searches,
        "queries": stats.queries,
        "batch_sizes": list(stats.batch_sizes),
        "guesses": stats.guesses,
        "guesses_right": stats.guesses_right,
        "wasted_segments": stats.wasted_segments,
        "writing_s": stats.write_s,
        "wasted_s": sum(_seconds(span) for span in wasted if span.kind == "extend"),
        "searching_s": stats.search_s,
        "both_s": stats.overlap_s,
        "searches": [
            [span.queries, round(_seconds(span), 6)] for span in kept if span.kind == "search"
        ],
    }


def bounds_of(plain: Answer) -> Bounds:
    """Read the bounds of DESIGN 5 off a plain run: no verification can end earlier."""
    spans = plain.stats.timeline
    steps = max(1, plain.stats.segments)
    searches = [_seconds(span) for span in spans if span.kind == "search"]
    writing = sum(_seconds(span) for span in spans if span.kind in ("ask", "extend"))
    return Bounds(steps=steps, step_s=writing / steps, search_s=fmean(searches or [0.0]))


def _seconds(span: Span) -> float:
    return span.ended_s - span.started_s
