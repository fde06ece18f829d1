"""One-shot RAG: it asks once and writes the whole answer, reporting as it goes."""

import pytest

from ralmspec_plugins import workloads
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hit, Passage, Request
from ralmspec_plugins.workloads import OneShot
from tests.workloads.scripted import ScriptedLM

REQUEST = Request(prompt="what is one?", max_tokens=9)
HITS = (Hit(Passage("p", "text")),)


def test_public_names() -> None:
    """The list that the package promises."""
    assert set(workloads.__all__) == {
        *("DraftWorkload", "Interval", "OneShot", "Sentences", "TextState", "TextWorkload"),
        *("Flare", "IterRetGen", "MultiHop", "HopFormat", "SearchTags", "Thoughts", "FollowUps"),
        *("Turn", "passages_say_the_same", "says_the_same", "WORKLOADS", "workload_of"),
    }


def test_it_asks_once_with_the_prompt() -> None:
    """One search, one segment of `max_tokens`."""
    lm = ScriptedLM("one two three")
    answer = plain(OneShot(lm), WordRetriever(["one two", "what is"]), REQUEST)

    assert answer.text == "one two three"
    assert [step.query.text for step in answer.retrieved] == ["what is one?"]
    assert lm.written == [(("p1",), 9)]
    assert lm.released == [lm.words]


def test_it_asks_once_even_if_the_answer_is_unfinished() -> None:
    """A model that stops short of its script is not asked again."""
    lm = ScriptedLM(" ".join("word" for _ in range(20)))
    answer = plain(OneShot(lm), WordRetriever(["one"]), REQUEST)

    assert len(answer.text.split()) == 9
    assert len(lm.written) == 1


def test_the_query_can_be_formed() -> None:
    """A function of the request, of its last line for example."""
    workload = OneShot(ScriptedLM("one"), query=lambda request: request.prompt.split()[-1])

    assert workload.query(workload.start(REQUEST)) == "one?"


def test_every_report_is_a_state() -> None:
    """What a stream is given while the segment is written are states of the workload."""
    workload = OneShot(ScriptedLM("one two three"))
    reports: list[str] = []
    progress = Progress(lambda state: reports.append(workload.settled(state)))
    workload.extend(workload.start(REQUEST), HITS, progress)

    assert reports == ["one", "one two", "one two three"]


def test_cancellation_reaches_the_model() -> None:
    """The model's checks are those of the segment."""
    workload = OneShot(ScriptedLM("one two three"))
    reports: list[str] = []
    progress = Progress(lambda state: (reports.append(workload.text(state)), progress.cancel()))

    with pytest.raises(Cancelled):
        workload.extend(workload.start(REQUEST), HITS, progress)
    assert reports == ["one"]


def test_keys_tell_before_from_after() -> None:
    """Asking depends on whether it was asked; writing on what the model says."""
    workload = OneShot(ScriptedLM("one"))
    begun = workload.start(REQUEST)
    done = workload.extend(begun, HITS, Progress())

    assert workload.query_key(begun) == workload.query_key(workload.start(REQUEST))
    assert workload.query_key(begun) != workload.query_key(done)
    assert workload.extend_key(begun, HITS) == (REQUEST, ("write", (), ("p",), 9))
