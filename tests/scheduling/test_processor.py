"""How busy the processor is."""

import threading

import pytest

from ralmspec_plugins.scheduling.processor import ProcessorLoad, ProcessorTime
from tests.virtual_time import VirtualClock


def load_of(clock: VirtualClock) -> ProcessorLoad:
    return ProcessorLoad(lambda: clock.now_s, lambda: clock.computed_s)


def passed(load: ProcessorLoad, clock: VirtualClock, seconds: float, computed_s: float) -> None:
    """Make a call of some seconds, some of them computed."""
    with load.call():
        clock.now_s += seconds - computed_s
        clock.compute(computed_s)


@pytest.mark.parametrize(("computed_s", "spare"), [(0.0, True), (0.5, True), (0.51, False)])
def test_as_much_again_must_be_spare(computed_s: float, spare: bool) -> None:
    """Half of the processor, while another run's call is made; a run alone delays no other."""
    clock = VirtualClock()
    load = load_of(clock)
    assert load.is_spare()
    passed(load, clock, 1.0, computed_s)

    with load.call():
        assert spare == load.is_spare()
        assert load.is_spare(own=1)
    assert load.is_spare()


def test_a_burst_in_which_calls_begin_says_nothing() -> None:
    """Many runs compute together and wait together: the wait behind the burst belongs to it."""
    clock = VirtualClock()
    load = load_of(clock)
    with load.call():
        clock.compute(0.1)
        assert load.is_spare()
        passed(load, clock, 0.2, 0.0)
        assert load.is_spare()  # 0.1 of 0.3 seconds
        clock.compute(0.2)
        assert not load.is_spare()  # 0.3 of 0.5 seconds


def test_what_was_before_a_pause_is_forgotten() -> None:
    """Idle time before the calls, as well as a busy time; it is measured over a second."""
    clock = VirtualClock()
    load = load_of(clock)
    passed(load, clock, 10.0, 10.0)
    with load.call():
        assert not load.is_spare()
        for _ in range(2):
            passed(load, clock, 0.6, 0.1)
        assert load.is_spare()  # 0.2 of 1.2 seconds
    clock.now_s += 60.0
    with load.call():
        passed(load, clock, 0.5, 0.3)
        assert not load.is_spare()  # 0.3 of 0.5 seconds


def test_a_crowd_of_calls_asks_the_system_seldom() -> None:
    """However many calls begin and end, the clocks are read so often in a second."""
    clock, read = VirtualClock(), list[float]()

    def computed() -> float:
        read.append(clock.now_s)
        return clock.computed_s

    load = ProcessorLoad(lambda: clock.now_s, computed)
    for _ in range(1000):
        passed(load, clock, 0.001, 0.0004)
        load.is_spare()
        load.is_spare()

    assert 50 <= len(read) <= 101
    with load.call():
        assert load.is_spare()  # 0.4 of one second
        for _ in range(1000):
            passed(load, clock, 0.001, 0.0006)
        assert not load.is_spare()


def test_calls_that_fail_have_ended() -> None:
    """And are counted as such."""
    clock = VirtualClock()
    load = load_of(clock)

    def failing() -> None:
        with load.call():
            clock.compute(1.0)
            raise ValueError("tool")

    with pytest.raises(ValueError, match="tool"):
        failing()

    assert 0 == load.running
    with load.call():
        assert not load.is_spare()


def test_the_processor_time_never_goes_back() -> None:
    """Also where several threads ask; what they have computed counts."""
    time = ProcessorTime()
    read = [time()]
    sum(range(300_000))
    read.append(time())
    thread = threading.Thread(target=lambda: read.append(time()))
    thread.start()
    thread.join()
    read.append(time())

    assert read == sorted(read)
    assert read[-1] > read[0]
