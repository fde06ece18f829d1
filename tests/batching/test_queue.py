"""The line: nobody is forgotten, nobody waits for ever, and nothing is merged across groups."""

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ralmspec_plugins.batching.queue import Batch, PendingCall, RequestQueue, SearchFn
from ralmspec_plugins.types import Query


def call(group: str, count: int) -> PendingCall:
    """Make a call that nobody waits for."""
    queries = [Query(f"{group}{place}") for place in range(count)]
    return PendingCall(
        group=group, search_fn=SearchFn(None), queries=queries, came_s=0.0, wake=lambda: None
    )


def drained(line: RequestQueue, most: int) -> list[Batch]:
    """Take batches until nobody waits."""
    batches = []
    while (batch := line.next_batch(most)) is not None:
        line.check()
        batches.append(batch)
    return batches


def parts(batch: Batch) -> list[tuple[PendingCall, range]]:
    """List what a batch has of each call."""
    return [(piece.call, piece.places) for piece in batch.parts]


class LineMachine(RuleBasedStateMachine):
    """Calls come, leave and are taken, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.line = RequestQueue(capacity=10)
        self.inside: list[PendingCall] = []
        self.taken: Counter[tuple[int, int]] = Counter()
        self.calls: list[PendingCall] = []
        self.left: set[int] = set()

    @rule(group=st.sampled_from("abc"), count=st.integers(1, 14))
    def join(self, group: str, count: int) -> None:
        self.calls.append(call(group, count))
        self.line.join(self.calls[-1])

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.calls:
            which = data.draw(st.integers(0, len(self.calls) - 1))
            was_waiting = self.calls[which].waiting > 0 and which not in self.left

            assert self.line.leave(self.calls[which]) == was_waiting
            self.left.add(which)

    @rule(most=st.integers(1, 6))
    def take(self, most: int) -> None:
        batch = self.line.next_batch(most)
        if batch is None:
            assert not any(one.waiting for at, one in enumerate(self.calls) if at not in self.left)
            return
        assert 1 <= len(batch.queries) == batch.size <= most
        assert len({one.group for one in batch.calls}) == 1
        for one, places in parts(batch):
            at = self.calls.index(one)
            assert at not in self.left
            for place in places:
                self.taken[at, place] += 1

    @invariant()
    def holds(self) -> None:
        self.line.check()
        assert all(times == 1 for times in self.taken.values())

    def teardown(self) -> None:
        """Whoever did not leave is served to the last query."""
        for batch in drained(self.line, 3):
            for one, places in parts(batch):
                for place in places:
                    self.taken[self.calls.index(one), place] += 1
        expected = {
            (at, place)
            for at, one in enumerate(self.calls)
            if at not in self.left
            for place in range(len(one.queries))
        }
        assert expected <= set(self.taken)
        assert all(times == 1 for times in self.taken.values())


TestLineMachine = LineMachine.TestCase


def test_a_small_call_does_not_wait_for_a_large_one() -> None:
    """One query behind five hundred is in the first batch of eight."""
    line = RequestQueue(capacity=1000)
    large, small = call("a", 500), call("a", 1)
    line.join(large)
    line.join(small)
    first = line.next_batch(8)

    assert first is not None
    assert {large: 7, small: 1} == {one: len(places) for one, places in parts(first)}


def test_calls_take_turns_when_there_are_more_than_a_batch_holds() -> None:
    """Of five large calls and batches of two, each is served again after the others."""
    line = RequestQueue(capacity=1000)
    calls = [call("a", 4) for _ in range(5)]
    for one in calls:
        line.join(one)
    served = [one for batch in drained(line, 2) for one, places in parts(batch) for _ in places]

    for start in range(0, 20, 5):
        assert set(calls) == set(served[start : start + 5])


def test_groups_take_turns() -> None:
    """A group with a thousand queries does not keep another one waiting for more than a batch."""
    line = RequestQueue(capacity=2000)
    line.join(call("a", 1000))
    line.join(call("b", 10))
    groups = [batch.calls[0].group for batch in drained(line, 5)]

    assert ["a", "b", "a", "b", "a"] == groups[:5]


def test_the_door_opens_in_order() -> None:
    """A large call at the door is not passed by small ones that would fit."""
    line = RequestQueue(capacity=4)
    calls = [call("a", count) for count in (3, 4, 1)]
    for one in calls:
        line.join(one)

    assert [line.awaits_admission(one) for one in calls] == [False, True, True]
    line.next_batch(3)
    assert [line.awaits_admission(one) for one in calls] == [False, False, True]


def test_a_call_larger_than_the_line_is_let_in_alone() -> None:
    """A capacity is no limit to what one caller may ask."""
    line = RequestQueue(capacity=2)
    line.join(call("a", 5))

    assert line.size == 5
    assert [2, 2, 1] == [batch.size for batch in drained(line, 2)]


def test_a_call_that_leaves_the_door_makes_way() -> None:
    """When a large call gives up at the door, the small one behind it comes in."""
    line = RequestQueue(capacity=4)
    calls = [call("a", count) for count in (3, 4, 1)]
    for one in calls:
        line.join(one)
    assert line.leave(calls[1])

    assert not line.awaits_admission(calls[2])
    assert line.size == 4


def test_a_failed_batch_is_searched_again_in_halves() -> None:
    """Of five calls the bad one is alone after three rounds, and only it gets the error."""
    line = RequestQueue(capacity=10)
    calls = [call("a", 1) for _ in range(5)]
    for one in calls:
        line.join(one)
    error, searches = ValueError("broken"), 0
    while (batch := line.next_batch(8)) is not None:
        line.check()
        searches += 1
        bad = calls[3] in batch.calls
        again = batch.give(error if bad else [()] * batch.size)
        if again:
            line.repeat(again)

    assert [None, None, None, error, None] == [one.error for one in calls]
    assert all(one.ended for one in calls)
    assert searches == 5  # 5, then 3 and 2, then 1 and 1


def test_a_piece_of_a_call_that_fails_is_no_error_of_the_call() -> None:
    """A search of half a call may fail where the whole would not, so it is repeated whole.

    What the other half's search then brings is too late to count.
    """
    line = RequestQueue(capacity=10)
    one = call("a", 4)
    line.join(one)
    half, rest = drained(line, 2)
    line.repeat(half.give(ValueError("broken")))
    whole = line.next_batch(2)
    assert whole is not None
    assert whole.is_one_call
    rest.give([(), ()])
    assert not one.ended

    assert [] == whole.give([(), (), (), ()])
    assert one.ended
    assert one.error is None


def test_both_halves_of_a_call_that_fail_repeat_it_once() -> None:
    """The second failure belongs to a try that is over."""
    line = RequestQueue(capacity=10)
    one = call("a", 4)
    line.join(one)
    for half in drained(line, 2):
        if again := half.give(ValueError("broken")):
            line.repeat(again)

    assert [4] == [batch.size for batch in drained(line, 4)]


def test_who_gives_up_is_not_searched_again() -> None:
    """Of a failed pair one has gone: only the other is repeated."""
    line = RequestQueue(capacity=10)
    calls = [call("a", 1), call("a", 1), call("a", 1)]
    for one in calls:
        line.join(one)
    [batch] = drained(line, 3)
    line.repeat(batch.give(ValueError("broken")))
    calls[0].given_up = True

    assert [[calls[1]], [calls[2]]] == [batch.calls for batch in drained(line, 3)]


def test_one_groups_flood_keeps_no_other_group_at_its_door() -> None:
    """The line of each group has its own capacity."""
    line = RequestQueue(capacity=4)
    flood = [call("a", 2) for _ in range(50)]
    for one in flood:
        line.join(one)
    quiet = call("b", 1)
    line.join(quiet)

    assert line.awaits_admission(flood[-1])
    assert not line.awaits_admission(quiet)
    line.next_batch(4)
    assert [quiet] == line.next_batch(4).calls  # type: ignore[union-attr]
