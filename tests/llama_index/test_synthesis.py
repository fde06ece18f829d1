"""The host's synthesizers, wrapped: their own responses, streams and events, and nothing else."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import (
    FixedRecencyPostprocessor,
    LongContextReorder,
    MetadataReplacementPostProcessor,
    PrevNextNodePostprocessor,
    SimilarityPostprocessor,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers import (
    ResponseMode,
    TreeSummarize,
    get_response_synthesizer,
)
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index_ralmspec.documents import nodes_of
from llama_index_ralmspec.host_calls import HostContext
from llama_index_ralmspec.synthesis import SynthesizerLM
from pydantic import BaseModel

from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hit, Hits, Request
from ralmspec_plugins.workloads import OneShot
from tests.llama_index.by_hand import QUESTIONS, made_passages, made_retriever
from tests.llama_index.engine_parts import made_ahead
from tests.llama_index.fake_llms import AsyncWordLLM, HostDownError, WordChat, WordLLM

MODES = list(ResponseMode)
NO_STREAM = (ResponseMode.ACCUMULATE, ResponseMode.COMPACT_ACCUMULATE)
LLMLESS: dict[ResponseMode, Any] = {
    ResponseMode.NO_TEXT: NoText,
    ResponseMode.CONTEXT_ONLY: ContextOnly,
}
RETRIEVER = made_retriever(k=3)
HITS: Hits = tuple(Hit(passage, 0.9 - at / 4) for at, passage in enumerate(made_passages()))


@pytest.fixture(autouse=True)
def _host_loop() -> Iterator[None]:
    """Close the event loop that the host leaves behind where it counts a message's tokens."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


def asked(prompt: str, *, asynchronous: bool = False, streaming: bool = False) -> Request:
    context = HostContext(QueryBundle(prompt), asynchronous, streaming)
    return Request(prompt=prompt, context=context)


def made(llm: Any = None, **settings: Any) -> Any:
    if (kind := LLMLESS.get(settings.get("response_mode", ResponseMode.COMPACT))) is not None:
        return kind(llm=llm or WordLLM(), streaming=settings.get("streaming", False))
    return get_response_synthesizer(llm=WordLLM() if llm is None else llm, **settings)


def written(lm: Any, request: Request, hits: Hits = HITS, progress: Any = None) -> Any:
    return lm.write(lm.begin(request), hits, 8, progress or Progress())


def awaited(lm: Any, request: Request, progress: Progress) -> Any:
    return asyncio.run(lm.awrite(lm.begin(request), HITS, 8, progress))


def seen(response: Any) -> tuple[Any, ...]:
    """All that a caller sees of a response that is not streaming."""
    nodes = [(one.node.to_dict(), one.score) for one in response.source_nodes]
    return type(response), str(response), nodes, response.metadata


@pytest.mark.parametrize("make", [WordLLM, WordChat])
@pytest.mark.parametrize("mode", MODES)
def test_a_response_is_the_hosts_own(mode: ResponseMode, make: Any) -> None:
    """Text, nodes, scores, metadata: in each mode, for models that complete and that chat."""
    synthesizer = made(make(), response_mode=mode)
    lm = SynthesizerLM(synthesizer)
    for question in QUESTIONS[:4]:
        expected = synthesizer.synthesize(query=question, nodes=nodes_of(HITS))
        draft = written(lm, asked(question))

        assert seen(expected) == seen(draft.message)
        assert str(expected.response or "") == draft.text
        assert draft.finished


@pytest.mark.parametrize("make", [WordLLM, AsyncWordLLM])
@pytest.mark.parametrize("mode", MODES)
def test_an_awaited_response_is_the_hosts_own(mode: ResponseMode, make: Any) -> None:
    """Also of models that would hold up the loop: they are asked in one of their own."""
    synthesizer = made(make(), response_mode=mode)
    lm = SynthesizerLM(synthesizer)
    request = asked("Who?", asynchronous=True)
    expected = asyncio.run(synthesizer.asynthesize(query="Who?", nodes=nodes_of(HITS)))
    if make is AsyncWordLLM:
        draft = awaited(lm, request, Progress())
    else:
        assert not hasattr(lm, "awrite")
        draft = written(lm, request)

    assert seen(expected) == seen(draft.message)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in NO_STREAM])
def test_a_stream_is_read_and_reported_piece_by_piece(mode: ResponseMode) -> None:
    """Each report is a longer beginning of the text that the host's stream comes to."""
    synthesizer = made(response_mode=mode, streaming=True)
    expected = synthesizer.synthesize(query="Who?", nodes=nodes_of(HITS))
    whole = isinstance(expected, Response)
    text = expected.response if whole else "".join(expected.response_gen)
    reports: list[str] = []
    progress = Progress(lambda draft: reports.append(draft.text))
    lm = SynthesizerLM(synthesizer)
    with made_ahead():
        draft = written(lm, asked("Who?", streaming=True), progress=progress)

    assert (text or "") == draft.text
    assert all(draft.text.startswith(report) for report in reports)
    assert sorted(reports, key=len) == reports
    assert type(expected) is type(draft.message)
    if isinstance(expected, StreamingResponse):
        assert reports[-1] == draft.text == draft.message.response_txt
        assert not draft.recording.unread


@pytest.mark.parametrize("make", [WordLLM, AsyncWordLLM, WordChat])
def test_an_awaited_stream_is_read(make: Any) -> None:
    """On the loop, or in a loop of its own: the same pieces."""
    synthesizer = made(make(), streaming=True)

    async def by_hand() -> str:
        response = await synthesizer.asynthesize(query="Who?", nodes=nodes_of(HITS))
        assert isinstance(response, AsyncStreamingResponse)
        return "".join([piece async for piece in response.async_response_gen()])

    expected = asyncio.run(by_hand())
    lm = SynthesizerLM(synthesizer)
    request = asked("Who?", asynchronous=True, streaming=True)
    reports: list[str] = []
    progress = Progress(lambda draft: reports.append(draft.text))
    with made_ahead():
        if hasattr(lm, "awrite"):
            draft = awaited(lm, request, progress)
        else:
            draft = written(lm, request, progress=progress)

    assert expected == draft.text == reports[-1] == draft.message.response_txt
    assert len(reports) > 1
    assert isinstance(draft.message, AsyncStreamingResponse)


def test_a_stream_made_after_its_search_is_left_to_its_reader() -> None:
    """The model is called when the caller reads, as it is in the host."""
    llm = WordLLM()
    synthesizer = made(llm, streaming=True)
    expected = "".join(synthesizer.synthesize(query="Who?", nodes=nodes_of(HITS)).response_gen)
    llm.calls.clear()
    draft = written(SynthesizerLM(synthesizer), asked("Who?", streaming=True))

    assert (True, "", True) == (draft.recording.unread, draft.text, draft.finished)
    assert llm.left_early == []
    assert expected == "".join(draft.message.response_gen)


def test_streaming_is_what_it_was_when_the_request_began() -> None:
    """A chat engine that has switched it off again gets what it asked for; nobody else notices."""
    synthesizer = made(streaming=False)
    lm = SynthesizerLM(synthesizer)

    assert isinstance(written(lm, asked("Who?", streaming=True)).message, StreamingResponse)
    assert isinstance(written(lm, asked("Who?", streaming=False)).message, Response)
    assert synthesizer._streaming is False


def test_no_nodes_make_the_hosts_empty_response() -> None:
    """As the host says it, streaming too."""
    for streaming in (False, True):
        lm = SynthesizerLM(made(streaming=streaming))
        with made_ahead():
            draft = written(lm, asked("Who?", streaming=streaming), ())

        assert draft.text == "Empty Response"
        assert draft.message.source_nodes == []


class Answered(BaseModel):
    answer: str


class Structured(TreeSummarize):
    """Gives an object, as a model that is told of a schema does."""

    def get_response(self, query_str: str, text_chunks: Any, **kwargs: Any) -> Any:
        return Answered(answer=text_chunks[0][-9:])


def test_a_structured_response_is_shown_as_its_json() -> None:
    """And handed on as the object that it is."""
    lm = SynthesizerLM(Structured(llm=WordLLM(), output_cls=Answered))
    draft = written(lm, asked("Who?"))

    assert isinstance(draft.message, PydanticResponse)
    assert draft.message.response == Answered(answer="the ships")
    assert draft.text == '{"answer":"the ships"}'


def test_speculation_changes_no_response() -> None:
    """Text and sources are the plain loop's, with postprocessors that look at scores."""
    processors = [SimilarityPostprocessor(similarity_cutoff=1.0), LongContextReorder()]
    lm: Any = SynthesizerLM(made(), processors)
    workload: OneShot[Any] = OneShot(lm)
    assert workload.reads_scores
    with Engine(workload, RETRIEVER) as engine:
        for question in QUESTIONS:
            expected = plain(workload, RETRIEVER, asked(question))
            answer = engine.run(asked(question))

            assert expected == answer
            assert seen(expected.state.draft.message) == seen(answer.state.draft.message)


def test_postprocessors_get_nodes_of_their_own() -> None:
    """What one writes into a node is in the response, and in no other response."""

    class Marks(BaseNodePostprocessor):
        def _postprocess_nodes(
            self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
        ) -> list[NodeWithScore]:
            for one in nodes:
                one.node.metadata["seen"] = one.node.metadata.get("seen", 0) + 1
                one.score = 7.0
            return nodes[::-1]

    lm = SynthesizerLM(made(), [Marks()])
    for _ in range(2):
        draft = written(lm, asked("Who?"))

        assert [1] * 4 == [one.node.metadata["seen"] for one in draft.message.source_nodes]
        assert draft.recording.used == draft.recording.nodes[::-1]
    assert [0.9, 0.65] == [hit.score for hit in HITS[:2]]
    assert lm.reads_scores
    assert not lm.side_by_side


def test_the_query_is_the_callers_own_and_a_copy() -> None:
    """Postprocessors see its embedding; what they write into it stays in this call."""
    seen: list[QueryBundle] = []

    class Writes(BaseNodePostprocessor):
        def _postprocess_nodes(
            self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
        ) -> list[NodeWithScore]:
            assert query_bundle is not None
            seen.append(QueryBundle(query_bundle.query_str, embedding=query_bundle.embedding))
            query_bundle.embedding = [9.0]
            return nodes

    bundle = QueryBundle("Who?", embedding=[1.0])
    request = Request(prompt="Who?", context=HostContext(bundle))
    lm = SynthesizerLM(made(), [Writes()])
    for _ in range(2):
        written(lm, request)

    assert seen == [QueryBundle("Who?", embedding=[1.0])] * 2
    assert bundle.embedding == [1.0]


NEAR: Hits = tuple(Hit(hit.passage, (hit.score or 0) + 0.01) for hit in HITS)
FAR: Hits = tuple(Hit(hit.passage, 0.1 * at) for at, hit in enumerate(HITS))


@pytest.mark.parametrize(
    ("processors", "same", "far"),
    [
        ([], True, True),
        ([MetadataReplacementPostProcessor(target_metadata_key="page")], True, True),
        ([FixedRecencyPostprocessor(date_key="page")], True, True),
        ([PrevNextNodePostprocessor(docstore=SimpleDocumentStore())], True, True),
        ([SimilarityPostprocessor(similarity_cutoff=0.5)], True, False),
        ([LongContextReorder()], True, False),
        ([FixedRecencyPostprocessor(date_key="page"), LongContextReorder()], True, True),
        (
            [PrevNextNodePostprocessor(docstore=SimpleDocumentStore()), LongContextReorder()],
            False,
            False,
        ),
        ([FixedRecencyPostprocessor(date_key="no such key"), LongContextReorder()], False, False),
    ],
    ids=lambda value: (
        "+".join(type(one).__name__ for one in value) if isinstance(value, list) else str(value)
    ),
)
def test_guesses_agree_where_scores_decide_nothing(
    processors: list[BaseNodePostprocessor], same: bool, far: bool
) -> None:
    """Scores a little off, scores the other way round: only what would come out counts."""
    lm = SynthesizerLM(made(), processors)

    assert same is lm.same_passages(HITS, NEAR)
    assert far is lm.same_passages(HITS, FAR)
    assert lm.same_passages(HITS, HITS)
    assert not lm.same_passages(HITS, HITS[:2])
    assert not lm.same_passages(HITS, HITS[::-1])


def test_what_is_not_known_may_look_at_scores() -> None:
    """A synthesizer of the user's, a postprocessor of the user's, a method put over one."""

    class Own(TreeSummarize):
        pass

    class Kept(SimilarityPostprocessor):
        pass

    changed = TreeSummarize(llm=WordLLM())
    changed.get_response = lambda **_: "mine"  # type: ignore[method-assign]
    for lm in (
        SynthesizerLM(Own(llm=WordLLM())),
        SynthesizerLM(changed),
        SynthesizerLM(made(), [Kept()]),
    ):
        assert lm.reads_scores
        assert not lm.same_passages(HITS, NEAR)
        assert lm.write_key(lm.begin(asked("a")), HITS, 8) != lm.write_key(
            lm.begin(asked("a")), NEAR, 8
        )
    known = SynthesizerLM(made())
    assert not known.reads_scores
    assert known.write_key(known.begin(asked("a")), HITS, 8) == known.write_key(
        known.begin(asked("a")), NEAR, 8
    )


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_hosts_error_is_raised_as_it_is(asynchronous: bool) -> None:
    """And the nodes that it was given are recorded."""
    request = asked("Who?", asynchronous=asynchronous)
    with pytest.raises(HostDownError):
        written(SynthesizerLM(made(WordLLM(fails_on="Who?"))), request)

    [record] = request.context.records
    assert [hit.passage.id for hit in HITS] == [one.node.node_id for one in record.nodes]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("make", [WordLLM, AsyncWordLLM])
def test_a_cancelled_stream_is_closed(make: Any, asynchronous: bool) -> None:
    """At its next piece; nothing of it is kept, which would keep it open."""
    llm = make()
    lm = SynthesizerLM(made(llm, streaming=True))
    request = asked("Who?", asynchronous=asynchronous, streaming=True)
    progress = Progress()
    progress.connect(lambda _: progress.cancel())
    awaits = asynchronous and hasattr(lm, "awrite")
    with pytest.raises(Cancelled), made_ahead():
        awaited(lm, request, progress) if awaits else written(lm, request, progress=progress)

    assert len(llm.left_early) == 1


def test_a_cancelled_call_is_not_begun() -> None:
    """Neither the postprocessors nor the model are asked."""
    llm = WordLLM()
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        written(SynthesizerLM(made(llm)), asked("Who?"), progress=progress)

    assert llm.calls == []


def test_only_models_of_servers_run_side_by_side() -> None:
    """A local one would be slowed down by a call that nobody waits for."""
    assert not SynthesizerLM(made(MockLLM())).side_by_side
    assert SynthesizerLM(made(MockLLM()), side_by_side=True).side_by_side
