"""The processor is idle in these tests, whatever else it does: time decides nothing."""

import pytest

from ralmspec_plugins.adapters import agents
from ralmspec_plugins.scheduling.processor import ProcessorLoad


@pytest.fixture(autouse=True)
def idle_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "ProcessorLoad", lambda: ProcessorLoad(computed=lambda: 0.0))
