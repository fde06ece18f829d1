"""Models that read hits instead of passages, with or without the scores in them."""

from collections.abc import Hashable
from typing import Any

import pytest

from ralmspec_plugins import Engine, FixedStride, Settings, SharedPassageCache
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hits, Request
from ralmspec_plugins.workloads import Interval, OneShot, Sentences
from tests.workloads.scripted import ScriptedLM

TEXTS = ["red fox", "blue whale red", "red stone"]


class Scorer(ScriptedLM):
    """Notes the scores that it sees."""

    reads_hits = True

    def __init__(self, *, reads_scores: bool) -> None:
        super().__init__("one two three")
        self.reads_scores = reads_scores
        self.seen: list[Any] = []

    def write(self, draft: Any, passages: Any, tokens: int, progress: Progress) -> Any:
        self.seen.append([(hit.passage.id, hit.score) for hit in passages])
        return super().write(draft, [hit.passage for hit in passages], tokens, progress)

    def write_sentence(self, draft: Any, passages: Any, tokens: int, progress: Progress) -> Any:
        return self.write(draft, passages, 1, progress)

    def write_key(self, draft: Any, passages: Any, tokens: int) -> Hashable:
        return super().write_key(draft, [hit.passage for hit in passages], tokens)


@pytest.mark.parametrize("kind", [OneShot, Sentences, Interval])
@pytest.mark.parametrize("reads_scores", [True, False])
def test_hits_come_with_scores_only_where_they_are_read(kind: Any, *, reads_scores: bool) -> None:
    """`reads_scores` of the model is the workload's; without it the scores are left out."""
    lm = Scorer(reads_scores=reads_scores)
    retriever = WordRetriever(TEXTS, k=2)
    with Engine(kind(lm), retriever) as engine:
        answer = engine.run("red fox")
    true = [[(hit.passage.id, hit.score) for hit in step.hits] for step in answer.retrieved]

    expected = [[(name, score if reads_scores else None) for name, score in step] for step in true]
    assert expected == lm.seen


def test_a_guess_with_other_scores_is_wrong_only_where_they_are_read() -> None:
    """The same passages with other scores are as good for a model that is shown none."""

    class Off(WordRetriever):
        """Its pool guesses the right passages, with other scores."""

        def table(self, capacity: int) -> Any:
            table = super().table(capacity)
            rank = table.rank
            table.rank = lambda *given: [(slot, score + 1) for slot, score in rank(*given)]  # type: ignore[method-assign]
            return table

    for reads_scores, wrong in ((True, True), (False, False)):
        pool = SharedPassageCache()
        settings = Settings(schedule=FixedStride(stride=2), pool=pool)
        lm = Scorer(reads_scores=reads_scores)
        with Engine(Interval(lm, interval=1), Off(TEXTS, k=2), settings) as engine:
            engine.run("red fox")
            answer = engine.run(Request(prompt="red fox", max_tokens=8))
        assert (answer.stats.accepted < answer.stats.guesses) is wrong


def test_passages_go_to_models_that_do_not_ask_for_hits() -> None:
    """The default is unchanged."""
    lm = ScriptedLM("one")
    hits: Hits = WordRetriever(TEXTS).search([WordRetriever(TEXTS).encode("red")])[0]
    workload: Any = OneShot(lm)
    state = workload.start(Request(prompt="red"))

    assert workload.reads_scores is False
    assert (
        workload.extend_key(state, hits)[1][1]
        == lm.write_key(state.draft, [hit.passage for hit in hits], 128)[1]
    )
