"""A store that answers at once, and a workload whose model takes 50 ms a step."""

import time

from ralmspec_plugins.testing import EchoWorkload, WordRetriever


class SlowWriter(EchoWorkload):
    def extend(self, state, hits, progress):
        time.sleep(0.05)
        return super().extend(state, hits, progress)


store = WordRetriever(["red fox", "blue whale", "grey cat"])
workload = SlowWriter()
prompt = "fox whale cat fox whale cat fox whale"
