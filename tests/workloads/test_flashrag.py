"""FlashRAG's pipelines beside ours, over one store and one model, where FlashRAG is installed.

The page on workloads says what is the same; each test holds a line of it. To run them:
`pip install --no-deps --target FOLDER flashrag-dev==0.1.2`, and FOLDER in PYTHONPATH.
"""

import math
import re
from collections.abc import Iterator
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.workloads.waiting import (
    Piece,
    WaitingModel,
    WaitingStore,
    hits_of,
    word,
)
from ralmspec_plugins import Continuous, Engine, Settings
from ralmspec_plugins.plain import plain
from ralmspec_plugins.types import Answer, Hits, Query, Request, TokenLogprob
from ralmspec_plugins.workloads import Flare, IterRetGen, MultiHop

flashrag = pytest.importorskip("flashrag.pipeline", reason="flashrag-dev is not installed")
QUESTIONS = [f"Who saw {word('question', number)}?" for number in range(100)]


class Script:
    """What the model writes behind a text, with passages in front; what the store finds."""

    def __init__(self, write: Any) -> None:
        self.write = write

    def piece(self, prompt: str, before: str, front: str) -> Piece:
        text, unsure, stopped_by, finished = self.write(prompt, before, front.split())
        tokens = tuple(
            TokenLogprob(f" {one}", math.log(0.1 if one in unsure else 0.9))
            for one in text.split(" ")
            if one
        )
        return Piece(tokens, stopped_by, finished)

    def found(self, query: str) -> str:
        return word("found", query.strip())


class Store:
    """The store with FlashRAG's methods."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[str] = []
        self.scores: Iterator[float] = repeat(1.0)

    def search(self, query: str, return_score: bool = False) -> Any:
        self.asked.append(query.strip())
        text = self.script.found(query)
        found = [{"id": text, "contents": f"\n{text}"}]
        return (found, [next(self.scores)]) if return_score else found

    def batch_search(self, queries: list[str]) -> list[Any]:
        return [self.search(query) for query in queries]


class Prompt:
    """A prompt as its parts."""

    @staticmethod
    def get_string(
        question: str, retrieval_result: Any = (), previous_gen: str | None = None
    ) -> tuple[str, str, list[str]]:
        return question, previous_gen or "", [one["id"] for one in retrieval_result]


class Generator:
    """The model with FlashRAG's methods; a word is a token."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.tokenizer = self
        self.fronts: list[list[str]] = []

    def encode(self, text: str, **_: Any) -> list[str]:
        return text.split()

    def decode(self, tokens: list[str]) -> str:
        return " ".join(tokens)

    def generate(self, prompts: Any, return_scores: bool = False, **_: Any) -> Any:
        given = prompts if isinstance(prompts, list) else [prompts]
        self.fronts += [front for _, _, front in given]
        pieces = [self.script.piece(*parts[:2], " ".join(parts[2])) for parts in given]
        texts = ["".join(one.text for one in piece.tokens).strip() for piece in pieces]
        scores = [[math.exp(one.logprob) for one in piece.tokens] for piece in pieces]
        return (texts, scores) if return_scores else texts


class Item:
    """A question or several, and what is said of them."""

    def __init__(self, question: Any) -> None:
        self.question = question
        self.said: dict[str, Any] = {}

    def update_output(self, name: str, value: Any) -> None:
        self.said[name] = value


def pipeline(name: str, script: Script, **settings: Any) -> Any:
    """Make a pipeline of FlashRAG of our parts, without its configuration."""
    made = object.__new__(getattr(flashrag, name))
    parts = {"retriever": Store(script), "generator": Generator(script), "prompt_template": Prompt}
    made.__dict__.update(parts, evaluate=lambda dataset, **_: dataset, **settings)
    return made


def ours(make: Any, script: Script, question: str, **request: Any) -> Answer:
    """Answer plainly and ahead, with guesses of which about half are right: the same."""
    model, store = WaitingModel(script, 0.0), WaitingStore(script, 0.0)
    asked = Request(prompt=question, **request)
    expected = plain(make(model), store, asked)
    settings = Settings(schedule=Continuous(min_acceptance_rate=0.0), speculators=[Halves()])
    with Engine(make(model), store, settings) as engine:
        assert expected == engine.run(asked)
    return expected


class Halves:
    """Guesses rightly for about half of the queries."""

    inline = True

    def guess(self, query: Query) -> Hits:
        right = len(set(query.text)) % 2
        return hits_of(word("found", query.text.strip()) if right else "wrong")

    def learn(self, query: Query, hits: Hits) -> None:
        """Learn nothing."""


def words(text: str) -> list[str]:
    return text.split()


def test_iterative_is_iter_retgen() -> None:
    """A hundred predictions and their queries are equal."""
    script = Script(lambda prompt, _, front: (word(prompt, *front), (), "", True))
    made = pipeline("IterativePipeline", script, iter_num=3)
    item = Item(QUESTIONS)
    made.run(item)
    answers = [
        ours(lambda lm: IterRetGen(lm, query_order="question_first"), script, question)
        for question in QUESTIONS
    ]

    assert item.said["pred"] == [answer.text.strip() for answer in answers]
    asked = [[step.query.text for step in answer.retrieved] for answer in answers]
    assert made.retriever.asked == [one for turn in zip(*asked, strict=True) for one in turn]
    assert len(set(item.said["pred"])) == len(QUESTIONS)


def thoughts(in_order: bool) -> Script:
    def write(prompt: str, before: str, front: list[str]) -> Any:
        read = front if in_order else sorted(front)
        return f"{word(prompt, *words(before), *read)}.", (), "", False

    return Script(write)


@pytest.mark.parametrize("in_order", [False, True])
def test_ircot_is_the_same_while_all_scores_are_equal(in_order: bool) -> None:
    """FlashRAG sorts passages by score: of equal scores the one that was found first is first."""
    script = thoughts(in_order)
    unequal = 0
    for question in QUESTIONS:
        made = pipeline("IRCOTPipeline", script, max_iter=2)
        made.run_item(item := Item(question))
        answer = ours(lambda lm: MultiHop(lm, hops="ircot", max_hops=2), script, question)
        unequal += words(item.said["pred"]) != words(answer.text)
        queries = [step.query.text for step in answer.retrieved]
        assert made.retriever.asked[: len(queries)] == queries
        assert len(made.retriever.asked) == len(queries) + 1  # one more than it reads

    assert unequal == 0


def test_ircot_puts_the_worst_passage_first() -> None:
    """With other scores its passages stand the other way round, and all predictions differ."""
    script = thoughts(in_order=True)
    unequal = 0
    for question in QUESTIONS:
        made = pipeline("IRCOTPipeline", script, max_iter=2)
        made.retriever.scores = iter([3.0, 2.0, 1.0])
        made.run_item(item := Item(question))
        answer = ours(lambda lm: MultiHop(lm, hops="ircot", max_hops=2), script, question)
        unequal += words(item.said["pred"]) != words(answer.text)

    assert unequal == len(QUESTIONS)


def follow_ups(text: str, contexts: list[str], question: str, *, both: bool) -> str:
    """Write the next line of two follow-up questions, their answers, and the final one."""
    asked = text.count("Follow up:")
    answered = len(re.findall(r"Intermediate answer: x", text))
    if answered < asked:
        return f"Intermediate answer: {word(question, asked, *contexts[-1:])}\n"
    if asked < 2:
        follow = f"Follow up: {word(question, asked, text.split('answer: ')[-1].strip())}\n"
        return follow if not both else f"{follow}Intermediate answer:"
    return f"So the final answer is: {text.split('answer: ')[-1].strip()}\n"


def test_self_ask_searches_the_question_too() -> None:
    """Follow-up questions and final answers are equal, if the last passages alone count."""

    def write(prompt: str, before: str, front: list[str]) -> Any:
        contexts = re.findall(r"Context1:\s+(\w+)", before)
        text = re.sub(r"Context1: +\w+\n", "", before)
        line = follow_ups(f"{text} ", contexts, prompt, both=False)
        if not line.startswith("Intermediate"):
            stop = "Intermediate answer:" if line.startswith("Follow") else ""
            return line, (), stop, True
        answer = line.removeprefix("Intermediate answer: ")
        line = answer + follow_ups(f"{text} {answer}", contexts, prompt, both=False)
        return line, (), "Intermediate answer:" if "Follow up" in line else "", True

    script = Script(write)
    for question in QUESTIONS:
        made = pipeline("SelfAskPipeline", script, max_iter=5, single_hop=False, P_INS="")

        def generate(prompt: str, stop: Any = (), made: Any = made, **_: Any) -> list[str]:
            front, _, rest = prompt.partition("\nQuesiton: ")
            asked, _, text = rest.partition("\nAre follow up questions needed here: Yes.\n")
            contexts = re.findall(r"Context1: (\w+)", front)
            return [follow_ups(text, contexts, asked, both=False)]

        made.generator = SimpleNamespace(generate=generate)
        made.run_item(item := Item(question))
        answer = ours(lambda lm: MultiHop(lm, hops="self_ask", answer_only=True), script, question)
        queries = [step.query.text for step in answer.retrieved]

        assert [question, *queries] == made.retriever.asked
        assert item.said["pred"].rpartition("final answer is: ")[2].strip() == answer.text
        assert len(queries) == 2


@pytest.mark.parametrize("unsure", [False, True])
def test_flare_is_another_algorithm(unsure: bool) -> None:
    """Equal where no token is unsure; else it looks ahead without passages, and texts differ."""

    def write(prompt: str, before: str, front: list[str]) -> Any:
        spaced = before.replace(".", ". ")  # FlashRAG joins sentences without a space
        said = word(prompt, *words(spaced), *(front if unsure else ()))
        # The sure word, which is searched, depends on the passages as well.
        return (
            f"It is {said} {said}y.",
            (f"{said}y.",) if unsure else (),
            "",
            spaced.count(".") == 4,
        )

    script, unequal = Script(write), 0
    for question in QUESTIONS:
        made = pipeline(
            "FLAREPipeline",
            script,
            threshold=0.2,
            max_generation_length=256,
            max_iter_num=5,
            look_ahead_steps=64,
            stop_sym=[],
        )
        made.run_item(item := Item(question))
        answer = ours(lambda lm: Flare(lm, theta=0.2, beta=0.2), script, question)
        fronts = made.generator.fronts

        assert fronts[:: 2 if unsure else 1] == [[]] * 5  # look-aheads
        assert question not in made.retriever.asked
        assert question == answer.retrieved[0].query.text
        unequal += words(item.said["pred"].replace(".", ". ")) != words(answer.text)

    assert unequal == (len(QUESTIONS) if unsure else 0)
