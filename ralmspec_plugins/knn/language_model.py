"""KNN-LM: a model, its datastore, and an engine with speculative searches."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.base import THREADS
from ralmspec_plugins.engine.streams import AnswerStream, AsyncAnswerStream
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import Closed, ConfigError
from ralmspec_plugins.knn.cache import CAPACITY, FOLLOWING, NeighbourCache, check_cache
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.hidden_states import KeyHook
from ralmspec_plugins.knn.interpolation import Mixing
from ralmspec_plugins.knn.model import (
    KNNModel,
    LogProbSampler,
)
from ralmspec_plugins.knn.perplexity import BLOCK, STRIDE, Foretold, foretell
from ralmspec_plugins.knn.request import KNNRequest, RequestOptions
from ralmspec_plugins.knn.search import GUESSED, NeighbourSearch, open_search
from ralmspec_plugins.knn.workload import KNNLM
from ralmspec_plugins.lm.fingerprint import model_fingerprint, tokenizer_fingerprint
from ralmspec_plugins.lm.huggingface import load, vocabulary_size
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.types import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Combines a model and a search with a datastore, after checks of compatibility.


def fitting_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    store: Datastore,
    cache_bytes: int,
    *,
    same_model: bool,
) -> KNNModel:
    """Return a model that runs as it did when the datastore's keys were computed.

    Args:
        model: a causal model.
        tokenizer: its tokenizer.
        store: the datastore.
        cache_bytes: the maximum memory for key-value caches that are not in use.
        same_model: require the weights by which the keys were computed.

    Raises:
        ModelError: they are incompatible; the message lists the differences.
    """
    about = store.about
    store.about.check_fits(
        dimension=KeyHook(model, about.key_kind).dimension,
        vocabulary=vocabulary_size(model),
        key_kind=about.key_kind,
        tokenizer=tokenizer_fingerprint(tokenizer),
        model=model_fingerprint(model) if same_model else "",
    )
    return KNNModel(
        model, tokenizer, key_kind=about.key_kind, bos=about.bos, cache_bytes=cache_bytes
    )


def fitting_search(store: Datastore, search: str | NeighbourSearch, k: int) -> NeighbourSearch:
    """Return a search of a datastore, opened by its name or given.

    Raises:
        ConfigError: the name is unknown, k is below 1, or it is a search of another datastore.
    """
    if isinstance(search, str):
        return open_search(search, store, k=k)
    if search.datastore.signature != store.signature:
        raise ConfigError("the search that was given is of another datastore; open one of this")
    return search


_GIB = 2**30


class KNNLanguageModel:
    """A causal model interpolated with the neighbours in a datastore.

    The text equals that of a plain loop that searches before each token,
    greedy or sampled, in less time (see `KNNLM`). Thread-safe.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        datastore: Datastore | str | os.PathLike[str],
        *,
        k: int = 1024,  # Khandelwal et al. 2020; 8 neighbours have most of its effect
        weight: float = 0.25,
        temperature: float = 1.0,
        search: str | NeighbourSearch = "exact",
        replica: str | NeighbourSearch | None = None,
        sampling: Greedy | Sampling | None = None,
        settings: Settings | None = None,
        following: int = FOLLOWING,
        followed: int | None = None,
        capacity: int = CAPACITY,
        cache_bytes: int = 2 * _GIB,
        same_model: bool = True,
    ) -> None:
        """Create a KNN-LM from a loaded model and its datastore.

        Args:
            model: a causal model, on any device and in any precision.
            tokenizer: the model's tokenizer.
            datastore: built with this model, or the folder of one.
            k: the number of neighbours.
            weight: their share in the mixture (lambda): 0.25 in the model's own domain, about
                0.65 in another.
            temperature: of their distances; above 1 distant ones have more weight.
            search: "exact", "hnsw" or "ivfpq", or an opened search of this
                datastore, which has its own k. "exact" scans with its own threads and limits
                numpy's BLAS to one thread in the whole process, if threadpoolctl is installed;
                `open_search("exact", datastore, k=k, threads=None)` does not change it.
            replica: guess with an approximate search of the same datastore, by its name or opened,
                and without a cache: its acceptance rate is much higher, and its index takes
                memory. A named one finds up to 64 neighbours, whose choices are nearly those of
                1024.
            sampling: how tokens are chosen; greedily by default.
            settings: of speculation; by default each request guesses from its own cache,
                and searches are no wider than k.
            following: the number of entries after each neighbour that the cache adds.
            followed: the number of nearest neighbours whose successors are added; by default all.
            capacity: the maximum number of entries in that cache.
            cache_bytes: the maximum memory for key-value caches that are not in use.
            same_model: require the weights by which the keys were computed; set it
                to False for another precision, for example.

        Raises:
            ConfigError: a setting is out of range, the name of a search is unknown, an opened one
                searches another datastore, or there are both a replica and other speculators.
            IndexFileError: the folder has no datastore, or a damaged one.
            ModelError: model and datastore are incompatible.
        """
        check_cache(following, followed, capacity)
        self.mixing = Mixing(weight=weight, temperature=temperature)
        store = datastore if isinstance(datastore, Datastore) else Datastore.open(datastore)
        self.datastore = store
        self.model = fitting_model(model, tokenizer, store, cache_bytes, same_model=same_model)
        self.retriever = fitting_search(store, search, k)
        self.sampling = sampling if sampling is not None else Greedy()
        self._following, self._followed, self._capacity = following, followed, capacity
        self.replica: Replica | None = None
        if replica is not None:
            cheap: Any = fitting_search(store, replica, min(self.retriever.k, GUESSED))
            of: Any = self.retriever  # lists of neighbours are lists of hits
            self.replica = Replica(cheap, of, inline=True)
        self._settings = self._checked(settings if settings is not None else Settings())
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec-knn")
        self._engines: dict[tuple[type[Any], Greedy | Sampling, bool], Any] = {}
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        datastore: Datastore | str | os.PathLike[str],
        *,
        dtype: Any = "auto",
        device: Any = None,
        **settings: Any,
    ) -> Self:
        """Load a saved model, or one from the hub; remote code is never run.

        Args:
            path: the model's folder or name.
            datastore: as above.
            dtype: the precision; as saved by default.
            device: the device of the model.
            settings: as for the class itself.

        Raises:
            ModelError: it is not a causal model, or does not fit the datastore.
        """
        model, tokenizer = load(path, dtype, device)
        return cls(model, tokenizer, datastore, **settings)

    def generate(self, prompt: str, **options: Unpack[RequestOptions]) -> Answer:
        """Continue a text.

        Args:
            prompt: the text.
            options: the maximum number of tokens `max_tokens` (128), the random seed for sampling
                `seed` (0), the stop strings `stop`, `sampling` (this model's by default),
                `deadline_s`, and `plain` (without speculation: the same text in more time).

        Returns:
            The text, the neighbours of each token (`retrieved`), and statistics (`stats`);
            the tokens are `answer.state.tokens`.

        Raises:
            InputError: the prompt is empty.
            ContextOverflowError: prompt and text together would exceed the model's context.
            DeadlineExceeded: the deadline passed.
        """
        asked = KNNRequest(prompt, **options)
        return self.engine(asked.sampling, plain=asked.plain).run(asked.request)

    def stream(self, prompt: str, **options: Unpack[RequestOptions]) -> AnswerStream:
        """Return the text of `generate` as a stream; only settled text is emitted."""
        asked = KNNRequest(prompt, **options)
        return self.engine(asked.sampling, plain=asked.plain).stream(asked.request)

    async def agenerate(self, prompt: str, **options: Unpack[RequestOptions]) -> Answer:
        """Return the result of `generate` without blocking the event loop."""
        asked = KNNRequest(prompt, **options)
        return await self.async_engine(asked.sampling, plain=asked.plain).run(asked.request)

    def astream(self, prompt: str, **options: Unpack[RequestOptions]) -> AsyncAnswerStream:
        """Return the stream of `stream` without blocking the event loop."""
        asked = KNNRequest(prompt, **options)
        return self.async_engine(asked.sampling, plain=asked.plain).stream(asked.request)

    def perplexity(
        self,
        texts: Sequence[str],
        *,
        block: int = BLOCK,
        stride: int = STRIDE,
        progress: Callable[[int], None] | None = None,
    ) -> Foretold:
        """Return the perplexity of held-out texts, with the neighbours and without.

        Args:
            texts: independent texts.
            block: the number of tokens of a window.
            stride: the number of tokens between windows.
            progress: called with the number of predicted tokens.
        """
        return foretell(
            self.model,
            self.retriever,
            texts,
            temperature=self.mixing.temperature,
            block=block,
            stride=stride,
            progress=progress,
        )

    def engine(self, sampling: Greedy | Sampling | None = None, *, plain: bool = False) -> Engine:
        """Return the engine, for batches, events, and custom requests."""
        engine: Engine = self._engine(Engine, sampling, plain)
        return engine

    def async_engine(
        self, sampling: Greedy | Sampling | None = None, *, plain: bool = False
    ) -> AsyncEngine:
        """Return the engine for the running event loop."""
        engine: AsyncEngine = self._engine(AsyncEngine, sampling, plain)
        return engine

    def close(self) -> None:
        """Wait for discarded searches, and release the threads."""
        with self._lock:
            self._closed = True
            engines = [engine for engine in self._engines.values() if isinstance(engine, Engine)]
        for engine in engines:
            engine.close()
        self._threads.shutdown(wait=True)

    async def aclose(self) -> None:
        """Close as `close` does, and the engine of the event loop, without blocking it."""
        with self._lock:
            engines = [one for one in self._engines.values() if isinstance(one, AsyncEngine)]
        for engine in engines:
            await engine.close()
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> Self:
        """Use as an asynchronous context manager."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.aclose()

    def _checked(self, settings: Settings) -> Settings:
        """Return settings without prefetching by default; check that there is one kind of guess."""
        own = settings.speculators is not None or settings.pool is not None
        if self.replica is not None and own:
            raise ConfigError(
                "replica and speculators were both given; put a Replica among the speculators"
            )
        if settings.prefetch is None:
            settings = replace(settings, prefetch=self.retriever.k)
        return settings

    def _guessing(self, *, inline: bool) -> Settings:
        """Return settings with a cache or replica by default; in workers on an event loop."""
        if self.replica is not None:
            of: Any = self.retriever
            aside = Replica(self.replica.retriever, of)
            return replace(self._settings, speculators=(self.replica if inline else aside,))
        if self._settings.speculators is None and self._settings.pool is None:
            return replace(self._settings, speculators=lambda: (self._cache(inline=inline),))
        return self._settings

    def _cache(self, *, inline: bool) -> NeighbourCache:
        return NeighbourCache(
            self.datastore,
            k=self.retriever.k,
            following=self._following,
            followed=self._followed,
            capacity=self._capacity,
            inline=inline,
        )

    def _engine(self, kind: type[Any], sampling: Greedy | Sampling | None, plain: bool) -> Any:
        chosen = sampling if sampling is not None else self.sampling
        key = (kind, chosen, plain)
        with self._lock:
            if self._closed:
                raise Closed("model")
            if key not in self._engines:
                workload = KNNLM(self.model, LogProbSampler(chosen), self.mixing)
                settings = self._guessing(inline=kind is Engine)
                settings = replace(settings, speculate=False) if plain else settings
                self._engines[key] = kind(workload, self.retriever, settings, threads=self._threads)
            return self._engines[key]
