"""What tests/conftest.py sets is undone, so that guessing has to pay as it does for users."""

from collections.abc import Iterator

import pytest

from ralmspec_plugins.scheduling import encoder_time
from ralmspec_plugins.scheduling.cost_model import Costs


@pytest.fixture
def guessing_has_to_pay() -> Iterator[None]:
    """Set what users have; a model of these tests computes while an encoder waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Costs, "SIDE_BY_SIDE_S", 0.003)
        patch.setattr(Costs, "WORTH_GUESSING", 0.05)
        patch.setattr(Costs, "WORTH_WRITING", 0.05)
        patch.setattr(encoder_time, "BY_PROCESS", 0.95)
        yield
