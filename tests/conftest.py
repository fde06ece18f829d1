"""Settings of the whole test run."""

import gc
import os

# Nothing that is imported or collected becomes garbage: it is not searched for any, see below.
gc.disable()
# One thread each: the models are tiny, and two workers share two cores.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402

from ralmspec_plugins.scheduling.cost_model import Costs  # noqa: E402
from tests.calibrations import share_calibrations  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def guessing_pays() -> Iterator[None]:
    """Have guesses made over the stores of tests, whose searches are too short to be worth it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Costs, "SIDE_BY_SIDE_S", 0.0)
        patch.setattr(Costs, "WORTH_GUESSING", 0.0)
        patch.setattr(Costs, "WORTH_WRITING", 0.0)
        patch.setattr(Costs, "STOP_SHARE", 0.0)
        patch.setattr(Costs, "LONG_SEARCH", 0.0)  # nor is the first outcome of a guess awaited
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Measure equal models once."""
    share_calibrations()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exempt what the collection made from garbage collection: a million objects, a second each."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the drawn worlds contained, also when workers ran the tests."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
