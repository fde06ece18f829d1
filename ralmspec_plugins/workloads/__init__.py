"""Workloads: when to ask, what to ask, and what the hits do to the state."""

from ralmspec_plugins.workloads.interval import Interval
from ralmspec_plugins.workloads.one_shot import OneShot
from ralmspec_plugins.workloads.sentences import Sentences

__all__ = ["Interval", "OneShot", "Sentences"]
