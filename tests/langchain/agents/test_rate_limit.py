"""A provider that asks to be called less often: an agent calls nothing ahead for that long."""

from typing import Any

import pytest
from langchain_core.outputs import ChatResult

from ralmspec_plugins.scheduling.rate_limit import RateLimit
from tests.brain import Brain
from tests.langchain.agents.parts import FakeModel
from tests.langchain.agents.twins import twins


class TooManyError(Exception):
    """An error as HTTP clients raise it."""

    status_code = 429


class LimitedModel(FakeModel):
    """Fails with status 429 when it is called ahead."""

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        if run_manager is not None and run_manager.handlers:  # the host has none here
            raise TooManyError
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


async def test_an_agent_calls_nothing_ahead_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call ahead fails; the runs after it make none."""
    calls: list[bool] = []

    def limited(self: Any, error: BaseException) -> None:
        calls.append(isinstance(error, TooManyError))
        noted(self, error)

    noted = RateLimit.note
    monkeypatch.setattr(RateLimit, "note", limited)
    seen = await twins(lambda: LimitedModel(brain=Brain(seed=3, hops=3)), times=3)

    assert seen.plain == seen.ahead
    assert [True] == calls
    assert 1 == seen.stats.calls_ahead == seen.stats.failed
