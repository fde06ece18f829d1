"""Compositions of LangChain's own parts, drawn by a seed: a chain, how it is called, and ours."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MergerRetriever,
)
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.output_parsers import (
    CommaSeparatedListOutputParser,
    JsonOutputParser,
    StrOutputParser,
)
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeRAG, SpeculativeRetriever, speculate

from ralmspec_plugins import Continuous, FixedStride, OptimalStride, QueryCache, SharedPassageCache
from tests.compositions.draws import Draws
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    HashChat,
    HashLLM,
    HashRetriever,
    HostError,
    ThreadedLLM,
    called,
    digest,
    documents,
    rag_of,
)

SYNC = ("invoke", "stream", "batch", "batch of all", "batch with errors")
WAYS = (*SYNC, *(f"a{way}" for way in SYNC))
QUESTIONS = tuple(f"Who {verb} it?" for verb in ("saw", "sold", "hid", "lost", "found"))


class Refuses(HashRetriever):
    """Raises for one question in four."""

    def _ranked(self, query: str) -> list[Document]:
        if digest("refused" + query) % 4 == 0:
            raise HostError(f"not found: {query}")
        return super()._ranked(query)


class Shortens(BaseDocumentCompressor):
    """A reranker that also cuts: by a digest of query and text."""

    keeps: int = 2

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> list[Document]:
        ranked = sorted(documents, key=lambda one: digest(query + one.page_content))
        return [
            Document(id=one.id, page_content=one.page_content[:12], metadata={"was": one.metadata})
            for one in ranked[: self.keeps]
        ]


class Heard(BaseCallbackHandler):
    """Notes what retrievers and models were asked and gave, in order."""

    def __init__(self, *, inline: bool) -> None:
        self.told: list[Any] = []
        self.run_inline = inline  # in the event loop's thread: quicker

    def on_retriever_start(self, serialized: Any, query: str, **about: Any) -> None:
        self.told.append(("asked", query, about.get("name")))

    def on_retriever_end(self, found: Any, **_: Any) -> None:
        self.told.append(("found", [(one.id, one.page_content) for one in found]))

    def on_llm_start(self, serialized: Any, prompts: Any, **_: Any) -> None:
        self.told.append(("prompted", prompts[0]))

    def on_chat_model_start(self, serialized: Any, messages: Any, **_: Any) -> None:
        self.told.append(("prompted", [one.text for one in messages[0]]))

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.told.append(("wrote", response.generations[0][0].text))


@dataclass(frozen=True)
class Composition:
    """A host's runnable and ours, what they are asked, and how."""

    seed: int
    host: Runnable[Any, Any]
    ours: Any
    values: list[Any]
    way: str
    cached: bool  # behind LangChain's LLM cache
    heard: bool  # its events are those of the host, one by one
    most: int | None  # requests at a time
    about: tuple[str, ...]  # what was drawn


def composition(seed: int) -> Composition:
    """Draw a composition; the host's parts and ours are made alike, and are others."""
    drawn = [_Draw(seed, ours=False), _Draw(seed, ours=True)]
    host, *_ = drawn[0].chains()
    own, ours, values, heard = drawn[1].chains()
    draw = drawn[1]
    way = draw.any(*WAYS)
    most = draw.any(None, None, 1, 2)
    if draw.ordered and "batch" in way:
        way, most = way.removeprefix("a"), 1  # tasks have no order
    if draw.loses_streams and "stream" in way:
        way = way.replace("stream", "invoke")
    cached = draw.maybe(0.15) and not draw.ordered
    heard = heard and not cached and way in ("invoke", "ainvoke")
    ours = speculate(own, **draw.options()) if ours is None else ours
    return Composition(seed, host, ours, values, way, cached, heard, most, tuple(draw.about))


class _Draw(Draws):
    """Throws the dice for the parts; the same seed gives equal parts that are not the same."""

    def __init__(self, seed: int, *, ours: bool) -> None:
        super().__init__(seed)
        self._ours = ours
        self.ordered = False  # its answers depend on the order of the calls
        self.loses_streams = False
        self._plain = True  # the retriever is one that tells what ours tells

    # Retrievers

    def _store(self) -> Any:
        found = documents(self.any(3, 6))  # with ids, or the store invents some
        store = InMemoryVectorStore.from_documents(found, DeterministicFakeEmbedding(size=16))
        settings: dict[str, Any] = {"k": self.any(1, 2, 4)}
        if self.maybe(0.2):
            settings["filter"] = _even
        kind = self.any("similarity", "similarity", "mmr")
        return store.as_retriever(search_type=kind, search_kwargs=settings)

    def _hashed(self) -> Any:
        kind = Refuses if self.maybe(0.2) else HashRetriever
        found = documents(self.any(3, 5), ids=self.maybe(0.7))
        return kind(documents=found, k=self.any(0, 1, 2), salt=str(self.any(1, 2)))

    def _bm25(self) -> Any:
        from langchain_community.retrievers import BM25Retriever

        return BM25Retriever.from_documents(documents(6), k=self.any(1, 2))

    def _simple(self) -> Any:
        return self.named({"store": self._store, "black box": self._hashed, "bm25": self._bm25})

    def _ensemble(self) -> Any:
        self._plain = False
        parts = [self._simple(), self._simple()]
        if self.maybe(0.5):
            return MergerRetriever(retrievers=parts)
        return EnsembleRetriever(retrievers=parts, weights=[0.4, 0.6])

    def _compressed(self) -> Any:
        self._plain = False
        return ContextualCompressionRetriever(
            base_retriever=self._simple(), base_compressor=Shortens(keeps=self.any(1, 2))
        )

    def retriever(self) -> Any:
        """Draw a retriever, perhaps in a wrapping."""
        found = self.named(
            {
                "simple": self._simple,
                "simple again": self._simple,
                "ensemble": self._ensemble,
                "compressed": self._compressed,
            }
        )
        wrapping = self.any(
            *("none", "none", "none", "retry", "fallback", "named", "fields", "layer", "listeners")
        )
        self.about.append(f"retriever {wrapping}")
        if wrapping == "layer":  # ours in front of it, which nobody is to notice
            memo, named = self.maybe(0.3), {"tags": ["layer"]} if self.maybe(0.3) else {}
            if self._ours:
                memo = QueryCache() if memo else None
                return SpeculativeRetriever(retriever=found, memo=memo, **named)
            return found.with_config(**named)
        if wrapping == "listeners":
            return found.with_listeners(on_end=_nothing)
        if wrapping == "retry":
            self._plain = False
            return found.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        if wrapping == "fallback":
            self._plain = False
            return found.with_fallbacks([HashRetriever(documents=documents(3, mark="other"))])
        if wrapping == "named":
            return found.with_config(run_name="finder", tags=["found"])
        if wrapping == "fields" and isinstance(found, HashRetriever):
            return found.configurable_fields(k=ConfigurableField(id="k"))
        return found

    # Models, prompts, parsers

    def model(self) -> Any:
        """Draw a model, perhaps in a wrapping."""
        llm: Any = self.named(
            {
                "text": HashLLM,
                "chat": HashChat,
                "chat that streams": lambda: HashChat(streaming=True),
                "threaded": ThreadedLLM,
                "queue": self._queue,
                "model that refuses": lambda: HashChat(hook=_refused),
            }
        )
        wrapping = self.any("none", "none", "none", "stop", "retry", "fallback", "config")
        self.about.append(f"model {wrapping}")
        self._plain &= wrapping not in ("retry", "fallback")  # ours tells what counts alone
        if wrapping == "stop":
            return llm.bind(stop=["x5"])
        if wrapping == "retry":
            return llm.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        if wrapping == "fallback":
            return llm.with_fallbacks([HashLLM()])
        if wrapping == "config":
            return llm.with_config(tags=["writer"])
        return llm

    def _queue(self) -> Any:
        """Draw a model that gives one answer after the other."""
        self.ordered = True
        answers = [f"answer {number}, x. And" for number in range(50)]
        return self.any(FakeListLLM, FakeListChatModel)(responses=answers)

    def prompt(self, *variables: str) -> Any:
        """Draw a prompt of documents and these variables."""
        shown = " ".join("{" + name + "}" for name in variables)
        kind = self.any("text", "chat", "history", "mustache")
        self.about.append(f"{kind} prompt")
        if kind == "text":
            return PromptTemplate.from_template("{context}\n" + shown)
        if kind == "mustache":
            marked = " ".join("{{" + name + "}}" for name in variables)
            return PromptTemplate.from_template(
                "{{context}}\n" + marked, template_format="mustache"
            )
        messages: list[Any] = [("system", "Know: {context}"), ("user", shown)]
        if kind == "history":
            messages.insert(1, ("placeholder", "{chat_history}"))
        return ChatPromptTemplate.from_messages(messages)

    def parser(self) -> Any:
        """Draw a parser."""
        kind = self.any("text", "text", "text", "list", "json")
        self.about.append(f"{kind} parser")
        if kind == "text":
            return StrOutputParser()
        self.loses_streams = True
        return CommaSeparatedListOutputParser() if kind == "list" else JsonOutputParser()

    # Chains

    def chains(self) -> tuple[Any, Any, list[Any], bool]:
        """Draw a chain: the host's, ours where it is not `speculate`'s, inputs, events alike."""
        return self.named(  # type: ignore[no-any-return]
            {
                "piped": self._piped,
                "piped too": self._piped,
                "assigned": self._assigned,
                "retrieval chain": self._retrieval_chain,
                "history-aware": self._history_aware,
                "sources": self._sources,
                "loop": self._loop,
                "alone": self._alone,
            }
        )

    def _values(self, make: Callable[[str], Any]) -> list[Any]:
        return [make(self.any(*QUESTIONS)) for _ in range(self.any(2, 2, 3))]

    def _documents(self) -> tuple[Any, bool]:
        """Draw what shows the documents: the chain from the retriever on."""
        retriever, shown = self.retriever(), self.any("function", "python", "reranked", "config")
        self.about.append(f"shown by {shown}")
        if shown == "python":
            return retriever, True
        if shown == "function":
            return retriever | _show, True
        if shown == "config":
            return retriever | RunnableLambda(_show_to, afunc=_ashow_to), True
        return retriever | RunnableLambda(_reranked) | _show, True

    def _piped(self) -> Any:
        found, alike = self._documents()
        key = itemgetter("question")
        by_key = self.any("whole", "key", "lambda", "upper")
        self.about.append(f"question by {by_key}")
        places: dict[str, Any]
        if by_key == "whole":
            places = {"context": found, "question": RunnablePassthrough()}
        elif by_key == "key":
            places = {"context": key | found, "question": key}
        elif by_key == "lambda":
            places = {"context": (lambda x: x["question"]) | found, "question": key}
        else:
            places = {"context": key | RunnableLambda(str.upper) | found, "question": key}
        chain = places | self.prompt("question") | self.model() | self.parser()
        values = self._values(lambda one: one if by_key == "whole" else {"question": one})
        return self._wrapped(chain), None, values, alike and self._plain and by_key != "upper"

    def _assigned(self) -> Any:
        found, alike = self._documents()
        key = itemgetter("question")
        extra = {"tone": lambda x: f"tone {len(x)}"} if self.maybe(0.4) else {}
        first = RunnablePassthrough.assign(context=key | found, **extra)
        variables = ("question", *extra)
        chain = first | self.prompt(*variables) | self.model() | self.parser()
        values = self._values(lambda one: {"question": one, "more": 1})
        return self._wrapped(chain), None, values, alike and self._plain

    def _combined(self) -> Any:
        if self.maybe(0.2):
            self.about.append("own combination")
            return RunnableLambda(_combination)
        shown = PromptTemplate.from_template("<{page_content}>") if self.maybe(0.5) else None
        return create_stuff_documents_chain(
            self.model(),
            self.prompt("input"),
            document_prompt=shown,
            document_separator=self.any("\n\n", " | "),
        )

    def _retrieval_chain(self) -> Any:
        found = self.retriever()
        host = isinstance(found, HashRetriever)
        retriever = found if host else itemgetter("input") | found
        chain = create_retrieval_chain(retriever, self._combined())
        values = self._values(lambda one: {"input": one, "more": [1]})
        return self._wrapped(chain), None, values, self._plain

    def _history_aware(self) -> Any:
        condense = PromptTemplate.from_template("{chat_history} {input}")
        retriever: Any = self._simple()
        aware = create_history_aware_retriever(HashLLM(max_tokens=3), retriever, condense)
        chain = create_retrieval_chain(aware, self._combined())

        def value(question: str) -> dict[str, Any]:
            turns = [("user", "x"), ("ai", "y")] if self.maybe(0.6) else []
            return {"input": question, "chat_history": turns}

        return self._wrapped(chain), None, self._values(value), False

    def _sources(self) -> Any:
        whole = self.maybe(0.5)
        question: Any = RunnablePassthrough() if whole else itemgetter("question")
        found = self.retriever()
        if self.maybe(0.3):
            found = found | RunnableLambda(_reranked)
            self._plain = False
        first = RunnableParallel(
            context=found if whole else question | found,
            question=question,
        )
        tail = self.prompt("question") | self.model() | StrOutputParser()
        answer = RunnablePassthrough.assign(context=lambda x: _show(x["context"])) | tail
        values = self._values(lambda one: one if whole else {"question": one})
        return self._wrapped(first.assign(answer=answer)), None, values, self._plain

    def _loop(self) -> Any:
        """Draw a loop that is written by hand, and the `SpeculativeRAG` of the same parts."""
        retriever = self.retriever()
        llm = self.any(HashLLM, HashChat, ThreadedLLM)()
        workload = self.any("sentences", "interval")
        self.about.append(workload)
        host = by_hand(llm, retriever, workload)
        ours: SpeculativeRAG = rag_of(llm, retriever, workload, report=False, **self.options())
        return host, ours, self._values(str), False

    def _alone(self) -> Any:
        """Draw a retriever, and ours in front of it."""
        found, memo = self.retriever(), self.maybe(0.4)
        options: dict[str, Any] = {"batching": self.any("exact", "exact", "probed", "off")}
        if self.maybe(0.5):
            options["pool"] = SharedPassageCache()
        if self.maybe(0.3):
            options["side_by_side"] = 1
        if memo:
            options["memo"] = QueryCache()
        self.about.append(f"options {sorted(options)}")
        alike = self._plain or not memo  # what is inside of a retriever is told where it runs
        ours = SpeculativeRetriever(retriever=found, **options)
        return found, ours, self._values(str), alike

    def _wrapped(self, chain: Any) -> Any:
        wrapping = self.any("none", "none", "none", "retry", "fallback", "config", "named")
        self.about.append(f"chain {wrapping}")
        if wrapping == "retry":
            return chain.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        if wrapping == "fallback":
            return chain.with_fallbacks([RunnableLambda(_instead)])
        if wrapping == "config":
            return chain.with_config(tags=["mine"], metadata={"who": "me"})
        return chain.with_config(run_name="mine") if wrapping == "named" else chain

    def options(self) -> dict[str, Any]:
        """Draw how ours speculates."""
        options: dict[str, Any] = {}
        if self.maybe(0.5):
            options["pool"] = self.any(None, SharedPassageCache(), SharedPassageCache())
        if self.maybe(0.2):
            options["memo"] = QueryCache()
        if self.maybe(0.3):
            options["replica"] = HashRetriever(documents=documents(4), salt="lie")
        if self.maybe(0.6):
            options["schedule"] = self.any(
                FixedStride(stride=3, overlap=True), OptimalStride(), Continuous(lanes=3)
            )
        if self.maybe(0.1):
            options["speculate"] = False
        if self.maybe(0.2):
            options["batching"] = self.any("off", "probed")
        self.about.append(f"options {sorted(options)}")
        return options


def _nothing(_run: Any) -> None:
    """Hear of a run."""


def _refused(prompt: str) -> None:
    if digest("refused" + prompt) % 3 == 0:
        raise HostError(f"cannot answer {prompt}")


def _even(document: Document) -> bool:
    return bool(document.metadata["even"])


def _show(found: Sequence[Document]) -> str:
    return " / ".join(f"{one.id}: {one.page_content}" for one in found)


def _show_to(found: Sequence[Document], config: Any) -> str:
    return f"{sorted(config['tags'])} {config['metadata'].get('who')} {_show(found)}"


async def _ashow_to(found: Sequence[Document], config: Any) -> str:
    await asyncio.sleep(0)
    return f"async {_show_to(found, config)}"


def _reranked(found: Sequence[Document]) -> list[Document]:
    return sorted(found, key=lambda one: digest(one.page_content))


def _combination(given: dict[str, Any]) -> str:
    return f"{sorted(given)} {_show(given['context'])}"


def _instead(value: Any) -> Any:
    return f"instead of an answer to {value}"


# What comes of a composition.


def outcomes(runnable: Any, drawn: Composition, handler: Heard) -> list[Any]:
    """Ask all that is to be asked, in the way that was drawn; errors stand for themselves."""
    config: dict[str, Any] = {"callbacks": [handler], "tags": ["caller"]}
    config["metadata"] = {"who": "somebody"}
    if drawn.most is not None:
        config["max_concurrency"] = drawn.most
    way, values = drawn.way, drawn.values
    if "of all" in way:
        found = _listed(lambda: _all(runnable, values, config, way))
        return found if len(found) == len(values) else ["an error"]  # whose comes first is chance
    if "with errors" in way:
        given = {"return_exceptions": True}
        return [_outcome(one) for one in _all(runnable, values, config, way, **given)]
    each = [_listed(lambda v=value: [called(runnable, v, way, config)]) for value in values]
    return [one for listed in each for one in listed]


def _listed(call: Callable[[], list[Any]]) -> list[Any]:
    try:
        return [_outcome(one) for one in call()]
    except Exception as error:
        return [_outcome(error)]


def _all(runnable: Any, values: list[Any], config: Any, way: str, **given: Any) -> list[Any]:
    if way.startswith("a"):
        return asyncio.run(runnable.abatch(values, config, **given))  # type: ignore[no-any-return]
    return runnable.batch(values, config, **given)  # type: ignore[no-any-return]


def _outcome(given: Any) -> Any:
    if isinstance(given, Exception):
        return type(given).__name__, str(given)
    return given
