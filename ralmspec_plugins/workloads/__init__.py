"""Workloads: when to retrieve, with which query, and how hits change the state."""

from ralmspec_plugins.workloads.agreement import passages_say_the_same, says_the_same
from ralmspec_plugins.workloads.base import DraftWorkload, TextState, TextWorkload
from ralmspec_plugins.workloads.flare import Flare
from ralmspec_plugins.workloads.hops import FollowUps, HopFormat, SearchTags, Thoughts, Turn
from ralmspec_plugins.workloads.interval import Interval
from ralmspec_plugins.workloads.iter_retgen import IterRetGen
from ralmspec_plugins.workloads.multi_hop import MultiHop
from ralmspec_plugins.workloads.one_shot import OneShot
from ralmspec_plugins.workloads.registry import WORKLOADS, workload_of
from ralmspec_plugins.workloads.sentences import Sentences

__all__ = [
    "WORKLOADS",
    "DraftWorkload",
    "Flare",
    "FollowUps",
    "HopFormat",
    "Interval",
    "IterRetGen",
    "MultiHop",
    "OneShot",
    "SearchTags",
    "Sentences",
    "TextState",
    "TextWorkload",
    "Thoughts",
    "Turn",
    "passages_say_the_same",
    "says_the_same",
    "workload_of",
]
