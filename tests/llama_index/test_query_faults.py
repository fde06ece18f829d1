"""What fails in a dropped branch never happened; what fails in the answer is the host's error."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import SimpleSummarize
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import SpeculativeQueryEngine, stats_of

from ralmspec_plugins import FixedStride, QueryCache
from ralmspec_plugins.errors import DeadlineExceeded
from tests.llama_index.engine_parts import hearing, legacy, missing, seen
from tests.llama_index.rag_parts import (
    MODELS,
    QUESTION,
    QUESTIONS,
    HashLLM,
    HashRetriever,
    HostError,
    Notes,
    ScoresIntoTexts,
    agoldens,
    canaries,
    goldens,
    made_nodes,
    pair,
)
from tests.llama_index.worlds import WordEmbedding

LYING = {"replica": HashRetriever(made_nodes(), salt="lie"), "pool": None}
LONG = QUESTIONS[4]  # many steps, also over a vector store
WORKLOADS = ["sentences", "interval", "one_shot"]


def parts(model: str = "text", workload: str = "interval", **more: Any) -> tuple[Any, ...]:
    """Give a model, a retriever, the loop by hand, and our engine over both."""
    llm, retriever = MODELS[model](), HashRetriever(made_nodes())
    return llm, retriever, *pair(llm, retriever, workload, **{**LYING, **more})


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


async def same_fate(hand: Any, ours: Any, question: str = QUESTION) -> Any:
    """Ask both, sync and async: the same error is raised and told. Gives the error.

    What failed while other work was running is made once more alone, and told again.
    """
    expected, told = goldens(hand.query, question)
    got, heard = goldens(ours.query, question)
    assert expected == got
    assert not missing(told, heard)
    aexpected, told = await agoldens(hand.aquery, question)
    got, heard = await agoldens(ours.aquery, question)
    assert aexpected == got
    assert not missing(told, heard)
    assert "drop" in {one[0] for one in told}
    return expected


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("model", MODELS)
async def test_a_store_that_goes_down_in_the_middle_fails_as_by_hand(
    model: str, workload: str
) -> None:
    """A search of the answer fails: the same error, the same spans dropped, in the same order."""
    _, retriever, hand, ours = parts(model, workload)
    hand.query(QUESTION)
    right = retriever.asked[min(2, len(retriever.asked) - 1)]

    def down(query: str) -> None:
        if query == right:
            raise HostError(f"no answer to {query}", 7)

    async def adown(query: str) -> None:
        down(query)

    retriever.hook, retriever.ahook = down, adown
    with ours:
        kind, args = await same_fate(hand, ours)

    assert (HostError, (f"no answer to {right}", 7)) == (kind, args)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("failing", [0, -1])
async def test_a_model_that_fails_in_the_answer_fails_as_by_hand(
    model: str, workload: str, failing: int
) -> None:
    """A right call fails whenever it is made: the host's error, told once."""
    llm, _, hand, ours = parts(model, workload)
    hand.query(QUESTION)
    right = llm.prompts[failing]

    def fails(prompt: str) -> None:
        if prompt == right:
            raise HostError("the model is down")

    llm.hook = fails
    with ours:
        assert (HostError, ("the model is down",)) == await same_fate(hand, ours)


@pytest.mark.parametrize("model", MODELS)
async def test_a_model_that_fails_behind_a_wrong_guess_is_not_heard_of(model: str) -> None:
    """Every call that is not one of the right ones fails: the answer is there, and no error."""
    llm, _, hand, ours = parts(model, schedule=FixedStride(stride=3))
    with ours:
        for question in QUESTIONS[:4]:
            llm.hook = None
            llm.prompts.clear()
            expected, told = goldens(hand.query, question)
            right, failed = set(llm.prompts), list[str]()

            def fails(prompt: str, right: set[str] = right, failed: list[str] = failed) -> None:
                if prompt not in right:
                    failed.append(prompt)
                    raise HostError("wrong branch")

            llm.hook = fails
            got, heard = goldens(ours.query, question)
            assert seen(expected) == seen(got)
            assert not missing(told, heard)
            assert seen(expected) == seen(await ours.aquery(question))
            assert failed


async def test_what_failed_only_while_it_ran_ahead_is_made_good() -> None:
    """A right call fails once, made ahead: no error is told, the answer is whole."""
    llm, _, hand, ours = parts(replica=HashRetriever(made_nodes()))
    expected, told = goldens(hand.query, QUESTION)
    once = {llm.prompts[2]}

    def fails(prompt: str) -> None:
        if prompt in once:
            once.discard(prompt)
            raise HostError("too many calls at a time")

    llm.hook = fails
    with ours:
        got, heard = goldens(ours.query, QUESTION)

    assert not once
    assert seen(expected) == seen(got)
    assert not missing(told, heard)


class Fails(BaseNodePostprocessor):
    """Fails."""

    def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
        raise HostError("the postprocessor is lost", len(nodes))


class FailingSynthesizer(SimpleSummarize):
    """Fails when it has the model's words."""

    def get_response(self, query_str: str, text_chunks: Any, **kwargs: Any) -> Any:
        said = str(super().get_response(query_str, text_chunks, **kwargs))
        raise HostError("the synthesizer is lost", said)

    async def aget_response(self, query_str: str, text_chunks: Any, **kwargs: Any) -> Any:
        said = str(await super().aget_response(query_str, text_chunks, **kwargs))
        raise HostError("the synthesizer is lost", said)


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_a_postprocessor_that_fails_fails_as_by_hand(workload: str) -> None:
    """Its error, with what it had told."""
    _, _, hand, ours = parts(workload=workload, processors=(Fails(),))
    with ours:
        assert (HostError, ("the postprocessor is lost", 2)) == await same_fate(hand, ours)


async def test_a_synthesizer_that_fails_fails_as_the_hosts() -> None:
    """A synthesizer of the user's own, behind the model's call: both are told."""
    retriever = HashRetriever(made_nodes())
    host = RetrieverQueryEngine(retriever, FailingSynthesizer(llm=HashLLM()))
    with SpeculativeQueryEngine.wrap(host, **LYING) as ours:
        kind, args = await same_fate(host, ours)

    assert HostError is kind
    assert len(args) == 2


class FailingEmbedding(WordEmbedding):
    """Embeds passages, and of queries so many."""

    left: int = 10**6

    def _get_query_embedding(self, query: str) -> list[float]:
        if not self.left:
            raise HostError("no vectors today")
        self.left -= 1
        return super()._get_query_embedding(query)


@pytest.mark.parametrize("left", [0, 2])
@pytest.mark.parametrize("workload", WORKLOADS)
async def test_an_embedder_that_fails_fails_as_by_hand(workload: str, left: int) -> None:
    """At once, or in the middle of an answer: the host's error, in its place."""
    embedding = FailingEmbedding()
    index = VectorStoreIndex(made_nodes(), embed_model=embedding)
    hand, ours = pair(HashLLM(), index.as_retriever(), workload, pool=None)
    if workload == "one_shot":
        left = 0

    def reset(call: Any) -> Any:
        def asked(question: str) -> Any:
            embedding.left = left
            return call(question)

        return asked

    with ours:
        expected, told = goldens(reset(hand.query), LONG)
        got, heard = goldens(reset(ours.query), LONG)
        assert (HostError, ("no vectors today",)) == expected == got
        assert not missing(told, heard)
        expected, told = await agoldens(reset(hand.aquery), LONG)
        got, heard = await agoldens(reset(ours.aquery), LONG)

    assert expected == got
    assert not missing(told, heard)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("where", ["model", "retriever"])
def test_older_handlers_hear_of_a_failure(where: str, workload: str) -> None:
    """Legacy callbacks: all starts, ends and exceptions of the host, in pairs."""
    manager, handler = legacy()
    llm, retriever = HashLLM(), HashRetriever(made_nodes())
    retriever.callback_manager = manager
    hand, ours = pair(llm, retriever, workload, manager=manager, **LYING)
    hand._response_synthesizer.callback_manager = manager  # and its model's
    hand.query(QUESTION)
    right = (llm.prompts if where == "model" else retriever.asked)[-1]

    def fails(text: str) -> None:
        if text == right:
            raise HostError("down")

    (llm if where == "model" else retriever).hook = fails
    handler.heard = []
    with pytest.raises(HostError):
        hand.query(QUESTION)
    expected, handler.heard = handler.heard, []
    with ours, pytest.raises(HostError):
        ours.query(QUESTION)

    assert not missing(expected, handler.heard)


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_a_stream_that_breaks_off_shows_nothing_wrong(workload: str) -> None:
    """The last right call breaks off behind its second word, always: what was shown stays true."""
    llm, _, hand, _ = parts(workload=workload)
    whole = hand.query(QUESTION).response
    last = llm.prompts[-1]
    _, ours = pair(llm, HashRetriever(made_nodes()), workload, streaming=True, **LYING)
    shown: list[str] = []

    def breaks(number: int) -> None:
        if number == 2 and llm.prompts[-1] == last:
            raise HostError("the line is cut")

    def read() -> None:
        shown.extend(ours.query(QUESTION).response_gen)

    async def aread() -> None:
        response = await ours.aquery(QUESTION)
        async for piece in response.async_response_gen():
            shown.append(piece)

    llm.between = breaks
    with ours:
        for _ in range(2):
            with pytest.raises(HostError, match="the line is cut"):
                read()
            assert whole.startswith("".join(shown))
            shown.clear()
        with pytest.raises(HostError, match="the line is cut"):
            await aread()

    assert whole.startswith("".join(shown))


def test_a_stream_that_breaks_off_is_told_as_the_host_does() -> None:
    """One retrieval: the same pieces, the same error behind them, the same events."""
    llm, retriever = HashLLM(), HashRetriever(made_nodes())
    host, ours = pair(llm, retriever, "one_shot", streaming=True, **LYING)

    def breaks(number: int) -> None:
        if number == 3:
            raise HostError("the line is cut")

    def read(engine: Any) -> Any:
        pieces: list[str] = []
        try:
            pieces.extend(engine.query(QUESTION).response_gen)
        except HostError as error:
            return pieces, error.args
        return pieces

    llm.between = breaks
    with ours:
        expected, told = goldens(read, host)
        got, heard = goldens(read, ours)

    assert (3, ("the line is cut",)) == (len(expected[0]), expected[1])
    assert "".join(expected[0]) == "".join(got[0])
    assert expected[1] == got[1]
    assert not missing(told, heard)


def test_a_stream_that_breaks_off_once_is_read_whole() -> None:
    """A right call made ahead breaks off: it is made once more, and read to its end."""
    manager, handler = legacy()
    llm = HashLLM(callback_manager=manager)
    retriever = HashRetriever(made_nodes())
    right_guess: dict[str, Any] = {"replica": HashRetriever(made_nodes()), "pool": None}
    right_guess["guess_through"] = True
    host, ours = pair(llm, retriever, "one_shot", manager=manager, streaming=True, **right_guess)
    broken: list[int] = []
    expected, told = goldens(lambda: list(host.query(QUESTION).response_gen))
    heard_before, handler.heard = handler.heard, []
    right = llm.prompts[-1]

    half = threading.Event()

    def breaks(number: int) -> None:
        if number == 2:
            half.set()
        if number == 3 and llm.prompts[-1] == right and not broken:
            time.sleep(0.05)  # the search has returned, and two words are shown
            broken.append(number)
            raise HostError("the line is cut")

    llm.between = breaks
    retriever.hook = lambda _: half.wait(2)
    with ours:
        got, heard = goldens(lambda: list(ours.query(QUESTION).response_gen))
    assert isinstance(got, list), got

    assert broken
    assert "".join(expected) == "".join(got)
    # What is made once more is read when the query has ended: it stands in no span.
    assert not missing([one[:2] for one in told], [one[:2] for one in heard])
    assert not missing(heard_before, handler.heard)


async def test_a_stream_that_is_given_up_in_the_middle_is_not_heard_of() -> None:
    """Wrong guesses are written while the search hangs: their ends are told to nobody."""
    llm, retriever = HashLLM(), HashRetriever(made_nodes())
    host, ours = pair(llm, retriever, "one_shot", streaming=True, **LYING)
    half = threading.Event()

    def right(number: int) -> None:
        if number == 2:
            half.set()  # the right answer is never slower than the wrong one
            time.sleep(0.002)

    def waits(query: str) -> None:
        half.wait(0.2)  # there may be no wrong guess, or a short one

    with ours:
        for question in QUESTIONS[:12]:
            llm.between = retriever.hook = None
            expected, told = goldens(lambda one: list(host.query(one).response_gen), question)
            llm.between, retriever.hook = right, waits
            half.clear()
            got, heard = goldens(lambda one: list(ours.query(one).response_gen), question)

            assert "".join(expected) == "".join(got)
            assert sorted(told) == sorted(heard)
    assert llm.left_early


@pytest.mark.parametrize("workload", ["interval", "one_shot"])
@pytest.mark.parametrize("where", ["retriever", "model"])
async def test_a_deadline_ends_everything(where: str, workload: str, gate: threading.Event) -> None:
    """Whatever hangs, the caller gets `DeadlineExceeded`."""
    llm, retriever, _, ours = parts(workload=workload, deadline_s=0.1)

    def hangs(_: str) -> None:
        threading.Timer(0.3, gate.set).start()  # a local model is waited for, 5 s at most
        gate.wait(20)

    async def ahangs(_: str) -> None:
        await asyncio.sleep(20)

    if where == "model":
        llm.hook = hangs
    else:
        retriever.hook, retriever.ahook = hangs, ahangs
    with ours:
        with pytest.raises(DeadlineExceeded):
            ours.query(QUESTION)
        gate.clear()
        with pytest.raises(DeadlineExceeded):
            await ours.aquery(QUESTION)
        gate.set()


class FailingHandlerError(Exception):
    """What a handler raises."""


def test_a_handler_that_raises_is_passed_over_as_at_the_host() -> None:
    """The host's own dispatcher decides about errors of handlers; the answer is the same."""
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler

    class Raising(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            raise FailingHandlerError

    _, _, hand, ours = parts()
    root = get_dispatcher()
    before = list(root.event_handlers)
    root.add_event_handler(Raising())
    try:
        outcomes = []
        for engine in (hand, ours):
            try:
                outcomes.append(seen(engine.query(QUESTION)))
            except FailingHandlerError as error:
                outcomes.append((type(error),))
    finally:
        root.event_handlers[:] = before
        ours.close()

    assert outcomes[0] == outcomes[1]


def test_no_word_of_a_dropped_branch_is_told() -> None:
    """Canaries: what handlers hear, whatever it is, has no word that is not in the answer."""
    llm, _, hand, ours = parts(schedule=FixedStride(stride=3))
    right = canaries(hand.query(QUESTION).response)
    with ours, hearing() as heard:
        ours.query(QUESTION)

    assert right == canaries(heard.events)
    assert right < canaries(llm.texts)


class Ends(HashRetriever):
    """Raises `StopIteration`, as a bare `next()` does."""

    def _ranked(self, query: str) -> list[NodeWithScore]:
        return [next(iter([]))]


class EndsWithin(Ends):
    """Raises it in a generator, which makes another error of it."""

    def _ranked(self, query: str) -> list[NodeWithScore]:
        def found() -> Iterator[NodeWithScore]:
            yield next(iter([]))

        return list(found())


class EndsWriting(HashLLM):
    """A model that raises it."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        return [next(iter([]))], {}


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("options", ["by default", "without speculation", "with a memo"])
@pytest.mark.parametrize(
    ("model", "finds", "error"),
    [
        (HashLLM, Ends, StopIteration),
        (HashLLM, EndsWithin, RuntimeError),
        (EndsWriting, HashRetriever, StopIteration),
    ],
)
def test_a_parts_stop_iteration_comes_out_as_itself(
    model: Any, finds: Any, error: type[Exception], options: str, workload: str
) -> None:
    """Of `query`, as from the host; of `aquery`, the coroutine's error that Python makes of it."""
    given: dict[str, Any] = {
        "by default": {},
        "without speculation": {"speculate": False},
        "with a memo": {"memo": QueryCache()},
    }[options]
    for engine in pair(model(), finds(made_nodes(3)), workload, **given):
        with pytest.raises(error) as told:
            engine.query("Who?")
        assert type(told.value) is error
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            asyncio.run(engine.aquery("Who?"))


class Sane(HashRetriever):
    """Gives nonsense for every question but these."""

    def __init__(self, known: set[str], nonsense: Any) -> None:
        super().__init__(made_nodes())
        self._known, self._nonsense = known, nonsense
        self._met = Notes()

    @property
    def met(self) -> list[str]:
        """What was asked besides."""
        return self._met.asked

    def _ranked(self, query: str) -> Any:
        if query in self._known:
            return super()._ranked(query)
        self._met.asked.append(query)
        return self._nonsense


@pytest.mark.parametrize("workload", ["sentences", "interval"])
@pytest.mark.parametrize("nonsense", [None, [None], "zz", 5], ids=repr)
async def test_nonsense_that_only_a_wrong_guess_meets_never_happened(
    nonsense: Any, workload: str
) -> None:
    """Called and awaited; the loop by hand never asks for it."""
    retriever = HashRetriever(made_nodes())
    hand, _ = pair(HashLLM(), retriever, workload)
    expected = [seen(hand.query(question)) for question in QUESTIONS[:4]]
    for asynchronous in (False, True):
        odd = Sane(set(retriever.asked), nonsense)
        schedule = FixedStride(stride=3, overlap=True)
        with pair(HashLLM(), odd, workload, **LYING, schedule=schedule)[1] as ours:
            for question, given in zip(QUESTIONS[:4], expected, strict=True):
                got = await ours.aquery(question) if asynchronous else ours.query(question)

                assert given == seen(got)
        assert odd.met


class Alike(BaseRetriever):
    """Finds the same, whatever is asked, with this score and these metadata."""

    def __init__(self, score: Any, metadata: dict[str, Any]) -> None:
        super().__init__()
        self._score, self._metadata = score, metadata

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        node = TextNode(id_="n", text="the ships", metadata=dict(self._metadata))
        found = NodeWithScore(node=node, score=1.0)
        found.score = self._score
        return [found]


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize(
    ("truth", "guess"),
    [
        ((-0.0, {}), (0.0, {})),
        ((1.0, {}), (True, {})),
        ((1.0, {}), (1, {})),
        ((1.0, {"a": 1, "b": 2}), (1.0, {"b": 2, "a": 1})),
        ((1.0, {"a": 1}), (1.0, {"a": True})),
        ((1.0, {"a": [0.0]}), (1.0, {"a": [-0.0]})),
    ],
    ids=repr,
)
async def test_a_guess_that_is_equal_and_reads_differently_is_wrong(
    truth: Any, guess: Any, workload: str
) -> None:
    """Scores and metadata are written into what the model reads."""
    options: dict[str, Any] = {"replica": Alike(*guess), "pool": None}
    options |= {"schedule": FixedStride(stride=3), "guess_through": True}
    parts = (HashLLM(), Alike(*truth), workload)
    hand, ours = pair(*parts, processors=(ScoresIntoTexts(),), **options)
    with ours:
        expected = hand.query(QUESTION)
        for got in (ours.query(QUESTION), await ours.aquery(QUESTION)):
            assert repr(seen(expected)) == repr(seen(got))
            assert stats_of(got).guesses > 0 == stats_of(got).accepted
