"""In-Context RALM: every few tokens it asks with the last ones and replaces the passages."""

import pytest

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hit, Passage, Request
from ralmspec_plugins.workloads import Interval
from tests.workloads.scripted import ScriptedLM

HITS = (Hit(Passage("p", "text"), 2.0), Hit(Passage("q", "text"), 1.0))


def test_it_asks_until_the_text_ends() -> None:
    """Worked: five words by two are three segments, each with the passages of its own query."""
    lm = ScriptedLM("one two three four five")
    retriever = WordRetriever(["one two", "three four"])
    answer = plain(Interval(lm, interval=2, query_tokens=3), retriever, Request(prompt=""))

    assert answer.text == "one two three four five"
    assert [step.query.text for step in answer.retrieved] == ["", "one two", "two three four"]
    assert lm.written == [(("p0",), 2), (("p0",), 2), (("p1",), 2)]
    assert lm.released == [lm.words]


def test_all_hits_stand_in_front_in_their_order() -> None:
    """The model sees passages, not scores."""
    lm = ScriptedLM("one two")
    workload = Interval(lm)
    workload.extend(workload.start(Request(prompt="")), HITS, Progress())

    assert not workload.reads_scores
    assert lm.written == [(("p", "q"), 4)]


def test_keys_are_the_models() -> None:
    """What a query and an extension depend on is for the model to say."""
    lm = ScriptedLM("one two")
    workload = Interval(lm, interval=3)

    assert workload.query_key(("one",)) == ("text", ("one",))
    assert workload.extend_key(("one",), HITS) == ("write", ("one",), ("p", "q"), 3)
    assert workload.text(("one",)) == workload.settled(("one",)) == "one"


@pytest.mark.parametrize("settings", [{"interval": 0}, {"query_tokens": 0}])
def test_lengths_below_one_are_refused(settings: dict[str, int]) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Interval(ScriptedLM(""), **settings)
