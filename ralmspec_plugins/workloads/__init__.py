"""Workloads: when to ask, what to ask, and what the hits do to the state."""

from ralmspec_plugins.workloads.base import DraftWorkload, TextState, TextWorkload
from ralmspec_plugins.workloads.interval import Interval
from ralmspec_plugins.workloads.one_shot import OneShot
from ralmspec_plugins.workloads.registry import WORKLOADS, workload_of
from ralmspec_plugins.workloads.sentences import Sentences

__all__ = [
    "WORKLOADS",
    "DraftWorkload",
    "Interval",
    "OneShot",
    "Sentences",
    "TextState",
    "TextWorkload",
    "workload_of",
]
