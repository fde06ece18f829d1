"""FLARE, Iter-RetGen and multi-hop, worked by hand over a scripted model."""

import asyncio
import math
import re
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Engine, FixedStride, Settings, plain
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hit, Hits, Passage, Query, Request, TokenLogprob
from ralmspec_plugins.workloads import (
    Flare,
    IterRetGen,
    MultiHop,
    SearchTags,
    passages_say_the_same,
    workload_of,
)
from tests.workloads.scripted import ScriptedLM

TEXTS = ["fox red", "whale blue", "stone grey"]


class ByPassage(ScriptedLM):
    """Writes the next piece of the script of the first passage in front; knows how sure it is.

    A piece is a sentence; words in capitals have the probability 0.3, others 0.9.
    """

    def __init__(self, **scripts: str) -> None:
        super().__init__("")
        self.scripts = {
            name: tuple(text.replace("|", " |").split(" |")) for name, text in scripts.items()
        }

    def finished(self, draft: tuple[str, ...]) -> bool:
        return len(draft) == len(self.scripts["p0"])

    def text(self, draft: tuple[str, ...]) -> str:
        return "".join(draft)

    def settled(self, draft: tuple[str, ...]) -> str:
        return "".join(draft)

    def write_sentence(
        self, draft: Any, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> Any:
        name = passages[0].id if passages else "p0"
        self.written.append((tuple(passage.id for passage in passages), tokens))
        progress.check()
        draft = (*draft, self.scripts[name][len(draft)])
        progress.report(draft)
        return draft

    def write(self, draft: Any, passages: Any, tokens: int, progress: Progress) -> Any:
        while not self.finished(draft):
            draft = self.write_sentence(draft, passages, tokens, progress)
        return draft

    def scored(self, thresholds: Sequence[float]) -> "ByPassage":
        self.thresholds = sorted(thresholds)
        return self

    def logprobs(self, draft: tuple[str, ...]) -> tuple[TokenLogprob, ...]:
        words = [word for piece in draft for word in piece.split(" ")]
        return tuple(
            TokenLogprob(f"{word} ", math.log(0.3 if word.isupper() else 0.9)) for word in words
        )


class Lower(WordRetriever):
    """Reads words alone, and no capitals."""

    def encode(self, text: str) -> Query:
        return Query(" ".join(re.findall("[a-z]+", text.lower())))


def scripted() -> ByPassage:
    return ByPassage(
        p0="all sure. |about WHALE here. |still red. |end.",
        p1="other one. |about blue here. |STONE next. |end.",
        p2="third one. |not here. |a stone. |end.",
    )


def queries(answer: Any) -> list[str]:
    return [step.query.text for step in answer.retrieved]


def test_flare_searches_where_it_is_unsure() -> None:
    """Worked: the first sentence is sure; the second asks, and is written with p1; and so on.

    The third is unsure too, and written with p2; the fourth is sure.
    """
    lm = scripted()
    answer = plain(Flare(lm, beta=0.2), Lower(TEXTS), "red")

    assert answer.text == "all sure. about blue here. a stone. end."
    assert queries(answer) == ["red", "about whale here", "stone next"]


@pytest.mark.parametrize("keep_unchanged", [True, False])
def test_flare_saves_what_would_come_again(*, keep_unchanged: bool) -> None:
    """Worked: of four sentences two are sure, one finds what is there: five writings, not eight."""
    lm = ByPassage(
        p0="all sure. |about WHALE here. |x. |end.",
        p1="no. |about blue here. |a BLUE whale. |end.",
        p2="no. |no. |no. |no.",
    )
    answer = plain(Flare(lm, beta=0.2, keep_unchanged=keep_unchanged), Lower(TEXTS), "red")

    assert answer.text == "all sure. about blue here. a BLUE whale. end."
    assert queries(answer) == ["red", "about whale here", "a blue whale"]
    assert len(lm.written) == (5 if keep_unchanged else 8)
    assert lm.written[0] == (("p0",), 64)


def test_a_masked_token_becomes_a_space() -> None:
    """Worked, over tokens of the probabilities 0.9, 0.3 and 0.9."""
    tokens = scripted().logprobs(("the BIG whale.",))

    assert Flare(scripted())._masked(tokens) == "the  whale."
    assert Flare(scripted(), beta=0.2)._masked(tokens) == "the BIG whale."


def test_flare_masks_and_asks_nothing_where_nothing_is_left() -> None:
    """A token of at most `beta` becomes a space; an empty query searches nothing."""
    lm = ByPassage(p0="the BIG whale. |WHALE |end.", p1="the small whale. |WHALE |end.", p2="")
    answer = plain(Flare(lm), Lower(TEXTS), "red")

    assert queries(answer) == ["red", "the whale"]
    assert answer.text == "the small whale. WHALE end."
    assert lm.thresholds == [0.4, 0.8]


def test_flare_can_ask_a_question() -> None:
    """The model is told the text so far and the span it is least sure of."""

    class Asking(ByPassage):
        def begin(self, request: Request) -> Any:
            self.prompt = request.prompt
            return ()

        def write(self, draft: Any, passages: Any, tokens: int, progress: Progress) -> Any:
            assert (passages, tokens) == ((), 7)
            self.asked = self.prompt
            return (" what is blue? ",)

    lm = Asking(p0="a BIG WHALE is it. |end.", p1="a whale. |end.", p2="")
    workload = Flare(lm, query_by="question", question_prompt="{text}: {span}?", question_tokens=7)
    answer = plain(workload, Lower(TEXTS), "red")

    assert queries(answer) == ["red", "what is blue"]
    assert lm.asked == "red a BIG WHALE is it.: BIG WHALE?"
    assert answer.text == "a whale. end."


def test_flare_needs_log_probabilities() -> None:
    """A model without is refused at once, and told what is missing."""
    lm: Any = ScriptedLM("")

    with pytest.raises(ConfigError, match="log-probabilities"):
        Flare(lm)
    with pytest.raises(ConfigError, match="log-probabilities"):
        workload_of("flare", lm)


def test_a_question_needs_a_prompt_of_its_own() -> None:
    """A host's model has its host's prompt around everything."""
    lm: Any = scripted()
    lm.fixed_prompt = True

    assert Flare(lm).query_by == "masking"
    with pytest.raises(ConfigError, match="a prompt of its own"):
        Flare(lm, query_by="question")


@pytest.mark.parametrize(
    "settings",
    [
        *({"theta": 1.5}, {"beta": -0.1}, {"look_ahead": 0}, {"query_by": "guessing"}),
        *({"question_prompt": "{text}"}, {"question_tokens": 0}),
    ],
    ids=str,
)
def test_settings_of_flare_are_checked(settings: dict[str, Any]) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Flare(scripted(), **settings)


def test_iter_retgen_writes_the_answer_again() -> None:
    """Worked: the answer by p0 speaks of a whale, that by p1 of a stone, and p2's comes last."""
    lm = ByPassage(p0="a whale |blue", p1="a stone |grey", p2="a fox |red")
    answer = plain(IterRetGen(lm), WordRetriever(TEXTS), "fox is")

    assert queries(answer) == ["fox is", "a whale blue fox is", "a stone grey fox is"]
    assert answer.text == "a fox red"


def test_the_question_can_stand_in_front() -> None:
    """As FlashRAG has it."""
    lm = ByPassage(p0="a whale |blue", p1="a stone |grey", p2="a fox |red")
    workload = IterRetGen(lm, iterations=2, query_order="question_first")

    assert queries(plain(workload, WordRetriever(TEXTS), "fox")) == ["fox", "fox a whale blue"]


@pytest.mark.parametrize("keep_unchanged", [True, False])
def test_an_answer_with_the_same_passages_is_not_written_again(*, keep_unchanged: bool) -> None:
    """Three iterations over one passage take one writing."""
    lm = ByPassage(p0="a fox |red")
    workload = IterRetGen(lm, keep_unchanged=keep_unchanged)
    answer = plain(workload, WordRetriever(["fox"]), Request(prompt="fox", max_tokens=9))

    assert answer.text == "a fox red"
    assert len(answer.retrieved) == 3
    assert len(lm.written) == (2 if keep_unchanged else 6)  # two pieces each time


def test_only_the_last_answer_is_shown() -> None:
    """Those before may be anything."""
    workload = IterRetGen(ByPassage(p0="a whale |blue"), iterations=2)
    hits: Hits = (Hit(Passage("p0", "")),)
    once = workload.extend(workload.start(Request(prompt="q")), hits, Progress())
    reports: list[str] = []
    progress = Progress(lambda state: reports.append(workload.settled(state)))
    twice = workload.extend(once, (Hit(Passage("p0", "other")),), progress)

    assert (workload.settled(once), workload.settled(twice)) == ("", "a whale blue")
    assert reports == ["a whale ", "a whale blue"]


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"query_order": "none"}], ids=str)
def test_settings_of_iter_retgen_are_checked(settings: dict[str, Any]) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        IterRetGen(scripted(), **settings)


class Reader:
    """Asks for a word, then for what it found, then answers with it; a call for each turn."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.stops: list[tuple[str, ...]] = []
        self.seeds: list[int] = []

    def begin(self, request: Request) -> Any:
        return request, ""

    def write(self, draft: Any, passages: Any, tokens: int, progress: Progress) -> Any:
        request, _ = draft
        assert list(passages) == []
        self.prompts.append(request.prompt)
        self.stops.append(request.stop)
        self.seeds.append(request.seed)
        found = request.prompt.rpartition("Title: ) ")[2].partition("<")[0]
        turn = request.prompt.count("<information>")
        text = ("I ask <search>fox", f"then <search> {found[-3:]} ", f"<answer>{found}")[turn]
        progress.report((request, text[:4]))
        return request, text

    def finished(self, draft: Any) -> bool:
        return bool(draft[1])

    def text(self, draft: Any) -> str:
        text: str = draft[1]
        return text

    settled = text

    def tail(self, draft: Any, tokens: int) -> str:
        raise AssertionError

    def text_key(self, draft: Any) -> Hashable:
        raise AssertionError

    def write_key(self, draft: Any, passages: Any, tokens: int) -> Hashable:
        raise AssertionError

    def release(self, draft: Any) -> None:
        """Nothing is kept."""


def test_multi_hop_puts_in_what_is_found() -> None:
    """Worked: each turn is written from the prompt, the text so far, and the passages in it."""
    lm = Reader()
    request = Request(prompt="q: ", stop=("END",), seed=5)
    answer = plain(MultiHop(lm), WordRetriever(["fox red", "red whale"]), request)

    assert queries(answer) == ["fox", "red"]
    assert answer.text == (
        "I ask <search>fox</search>then <search> red </search><answer>fox red</answer>"
    )
    assert lm.prompts[1] == (
        "q: I ask <search>fox</search>\n\n<information>Doc 1(Title: ) fox red</information>\n\n"
    )
    assert (answer.stats.segments, answer.stats.without_retrieval) == (3, 1)
    assert set(lm.stops) == {("</search>", "</answer>", "END")}
    assert lm.seeds == [5, 6, 7]


def test_the_answer_alone_can_be_given() -> None:
    """Then nothing is settled before the end."""
    workload = MultiHop(Reader(), answer_only=True)
    retriever = WordRetriever(["fox red", "red whale"])
    answer = plain(workload, retriever, "q: ")
    with Engine(workload, retriever) as engine:
        pieces = list(engine.stream("q: "))

    assert answer.text == "fox red"
    assert pieces == ["fox red"]


def test_at_most_so_many_hops() -> None:
    """One more turn is written behind the last, and what it asks is not searched."""
    answer = plain(MultiHop(Reader(), max_hops=1), WordRetriever(["fox red", "red"]), "q: ")

    assert queries(answer) == ["fox"]
    assert answer.text.endswith("then <search> red </search>")


class Wrong:
    """Guesses a passage of the same words, under another id and spelling."""

    inline = True

    def guess(self, query: Query) -> Hits:
        return (Hit(Passage("other", f"{TEXTS[0].upper()}!")),)

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows."""


class Twin(Wrong):
    """Guesses a passage that reads the same, under another id."""

    def guess(self, query: Query) -> Hits:
        return (Hit(Passage("other", TEXTS[0])),)


def _answered(workload: Any, speculator: Any) -> Any:
    settings = Settings(speculators=[speculator], schedule=FixedStride(stride=3))
    with Engine(workload, WordRetriever(TEXTS), settings) as engine:
        return engine.run("q: ")


def test_what_the_model_reads_decides() -> None:
    """A guess that reads the same is right; the sources are those that were found."""
    workload = MultiHop(Reader())
    answer = _answered(workload, Twin())

    assert answer == plain(workload, WordRetriever(TEXTS), "q: ")
    assert answer.stats.accepted > 0
    assert "other" not in [hit.passage.id for hit in answer.sources]
    assert not answer.stats.lossy
    assert _answered(workload, Wrong()).stats.accepted == 0


def test_a_verifier_of_ones_own_is_lossy() -> None:
    """SpecHop's lets the guess stand; the statistics say so."""
    workload = MultiHop(Reader(), agree=passages_say_the_same)
    expected = plain(workload, WordRetriever(TEXTS), "q: ")
    answer = _answered(workload, Wrong())

    assert answer.stats.accepted > 0
    assert answer.stats.lossy
    assert not expected.stats.lossy
    assert "FOX RED!" in answer.text
    assert answer.text != expected.text


def test_settings_of_multi_hop_are_checked() -> None:
    """Formats by name, or of one's own; thoughts need a model that writes sentences."""
    with pytest.raises(ConfigError, match="search_r1, ircot, self_ask"):
        MultiHop(Reader(), hops="tags")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"lacks stop, by_sentence, .*answer"):
        MultiHop(Reader(), hops=object())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_hops"):
        MultiHop(Reader(), max_hops=0)
    with pytest.raises(ConfigError, match="write_sentence"):
        MultiHop(Reader(), hops="ircot")
    assert MultiHop(Reader(), hops="search-r1").hops == SearchTags()  # type: ignore[arg-type]


class Awaited(ByPassage):
    """Is awaited."""

    async def awrite(self, *given: Any) -> Any:
        return self.write(*given)

    async def awrite_sentence(self, *given: Any) -> Any:
        return self.write_sentence(*given)


@pytest.mark.parametrize(
    "make",
    [
        Flare,
        IterRetGen,
        lambda lm: Flare(lm, query_by="question"),
        lambda lm: MultiHop(lm, hops="ircot"),
    ],
)
def test_models_that_are_awaited_write_the_same(make: Any) -> None:
    """Without holding up the event loop: the workload has methods to await."""
    scripts = {"p0": "a WHALE. |is RED. |x.", "p1": "a fox. |STONE is. |y.", "p2": "b. |c. |z."}
    workload = make(Awaited(**scripts))
    retriever = Lower(TEXTS)

    async def main() -> Any:
        async with AsyncEngine(workload, retriever) as engine:
            return await engine.run("red")

    answer = asyncio.run(main())

    assert answer == plain(make(ByPassage(**scripts)), retriever, "red")
    assert len(answer.retrieved) > 1
    assert hasattr(workload, "aextend")
    assert hasattr(workload, "aquery") == isinstance(workload, Flare)
