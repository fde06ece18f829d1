"""Workloads: when to ask, what to ask, and what the hits do to the state."""

from ralmspec_plugins.workloads.interval import Interval
from ralmspec_plugins.workloads.one_shot import OneShot

__all__ = ["Interval", "OneShot"]
