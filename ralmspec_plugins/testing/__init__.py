"""Fakes, contracts and tiny models, for tests of your own workloads, retrievers and speculators.

`contracts` needs pytest and numpy, `models` the extra `hf`: import them by their modules.
"""

from ralmspec_plugins.testing.fakes import EchoWorkload, Lines, WordRetriever, WordTable

__all__ = ["EchoWorkload", "Lines", "WordRetriever", "WordTable"]
