"""One-shot RAG: it asks once and writes the whole answer, reporting as it goes."""

from collections.abc import Sequence
from typing import Any

import pytest

from ralmspec_plugins import Engine, Settings, SharedPassageCache, workloads
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.speculators import PassageCache, QueryCache
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hit, Hits, Passage, Query, Request
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


class Counting(WordRetriever):
    """Notes how many hits each search was asked for."""

    def __init__(self) -> None:
        super().__init__(["what is one", "one two", "what is"], 1)
        self.widths: list[int] = []

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        self.widths.append(width)
        return super().search_wide(queries, width)


def test_without_shared_caches_there_is_nothing_to_guess_from() -> None:
    """It is answered plainly, says why, and asks for no more hits than it needs."""
    retriever = Counting()
    with Engine(OneShot(ScriptedLM("one two three")), retriever) as engine:
        answers = [engine.run(REQUEST) for _ in range(2)]

    assert answers == [plain(OneShot(ScriptedLM("one two three")), Counting(), REQUEST)] * 2
    assert retriever.widths == [1, 1]
    assert "retrieves once" in str(answers[0].stats.unguessed)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(pool=SharedPassageCache()),
        Settings(memo=QueryCache()),
        Settings(speculators=lambda: [PassageCache(Counting())]),
    ],
    ids=["pool", "memo", "speculators"],
)
def test_with_shared_caches_it_speculates(settings: Settings) -> None:
    """A second request knows, or guesses, what the first has found."""
    retriever = Counting()
    with Engine(OneShot(ScriptedLM("one two three")), retriever, settings) as engine:
        answers = [engine.run(REQUEST) for _ in range(2)]

    assert answers == [plain(OneShot(ScriptedLM("one two three")), Counting(), REQUEST)] * 2
    assert retriever.widths[0] > 1
    assert all("retrieves once" not in str(answer.stats.unguessed) for answer in answers)


def test_a_batch_shares_its_cache() -> None:
    """So its requests speculate."""
    retriever = Counting()
    with Engine(OneShot(ScriptedLM("one two three")), retriever) as engine:
        answers = engine.batch([REQUEST] * 3)

    assert answers == [plain(OneShot(ScriptedLM("one two three")), Counting(), REQUEST)] * 3
    assert max(retriever.widths) > 1


def test_a_subclass_with_queries_of_its_own_may_retrieve_again() -> None:
    """Only the workload's own query is known to be formed once."""

    class Twice(OneShot[str]):
        def query(self, state: Any) -> Any:
            return super().query(state)

    assert OneShot(ScriptedLM("one")).retrieves_once
    assert not Twice(ScriptedLM("one")).retrieves_once
