"""The texts of benchmarks: passages that are searched, and articles that are written."""

import json
import re
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness.cases import DENSE, Arm, Speculators, Store
from benchmarks.harness.process import ServedStore, core_for_another, service
from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.demo.python_docs import library_passages
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.diagnosis import far_away
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.lm import HuggingFaceLM, PassageTemplate
from ralmspec_plugins.lm.kv_cache import PrefillSchedule
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import PoolableRetriever
from ralmspec_plugins.retrieval import Encoder, NumpyFlat, open_retriever, save
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.encoders import encode_all
from ralmspec_plugins.speculators.passage_cache import PassageCache
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.types import Passage, Request

PROMPT_WORDS: Final = 24
_PASSAGE_WORDS: Final = 100  # as in the paper
_WORDS_A_TOKEN: Final = 0.9  # at most: a piece of a trained vocabulary is hardly ever more
_WORDS_TO_SPARE: Final = 8  # for short scripts, whose words may all be long


@dataclass(frozen=True, slots=True)
class Script:
    """What a trace asks a model to write: the prompt, and the words that follow."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Library:
    """Passages, and articles over the same things.

    `vectors`: of the passages, [passages, dim] float32, where they are known already.
    """

    name: str
    passages: Sequence[Passage]
    articles: Sequence[str]
    vectors: NDArray[np.float32] | None = field(default=None, repr=False)

    def scripts(self, count: int, tokens: int) -> list[Script]:
        """Cut scripts out of the articles, each long enough for so many tokens.

        The first of each article come first, so that few scripts are of different articles.

        Raises:
            InputError: the articles are too short for so many.
        """
        words_needed = PROMPT_WORDS + int(_WORDS_A_TOKEN * tokens) + _WORDS_TO_SPARE
        made: list[Script] = []
        articles = [article.split() for article in self.articles]
        longest = max((len(words) for words in articles), default=0)
        for start in range(0, longest, words_needed):
            for words in articles:
                piece = words[start : start + words_needed]
                if len(piece) == words_needed:
                    text = " ".join(piece[PROMPT_WORDS:])
                    made.append(Script(" ".join(piece[:PROMPT_WORDS]), text))
                if len(made) == count:
                    return made
        raise InputError(
            f"the articles of {self.name} give {len(made)} texts of {words_needed} words, but "
            f"{count} are needed; give more or longer articles, or ask for fewer requests or steps"
        )


def folder_library(folder: Path) -> Library:
    """Read articles.jsonl and passages.jsonl of a folder, or files whose names end so.

    Articles have a "text", passages an "id", a "title" and a "text"; without passages the
    articles are cut into pieces of 100 words. The vectors of passages are taken from a
    file `*vectors.npz` with an array `docs`, if there is one of their number.

    Raises:
        InputError: there are no articles.
    """
    articles = [row["text"] for row in _rows(folder, "articles.jsonl")]
    if not articles:
        raise InputError(
            f"{folder} has no file named *articles.jsonl with lines such as "
            '{"title": "...", "text": "..."}'
        )
    listed = _rows(folder, "passages.jsonl")
    passages = [Passage(row["id"], row["text"], row.get("title", "")) for row in listed]
    if not passages:
        passages = list(_pieces(articles))
    return Library(folder.name, passages, articles, _vectors(folder, len(passages)))


def python_library() -> Library:
    """Read the documentation of the installed Python's standard library: there on any machine.

    Raises:
        InputError: its sources are not on this machine.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    passages = list(library_passages(stdlib))
    if not passages:
        raise InputError(f"the standard library's sources are not in {stdlib}")
    modules: dict[str, list[str]] = {}
    for passage in passages:
        modules.setdefault(passage.id.partition(".")[0], []).append(passage.text)
    articles = sorted((" ".join(texts) for texts in modules.values()), key=len, reverse=True)
    return Library("Python's documentation", passages, articles)


def world_library() -> Library:
    """Give the demo's invented world, which the demo's model can write about."""
    world = make_world(DEMO_SEED)
    passages = [Passage(told.id, told.text, told.title) for told in world.passages()]
    return Library("an invented world", passages, ())


NEARNESS: Final = 0.7  # of a padding vector to a real one, before noise of length 1 is added
_CHUNK: Final = 65_536  # vectors that are drawn at once


def padded(
    passages: Sequence[Passage], vectors: NDArray[np.float32], size: int, seed: int = 0
) -> tuple[list[Passage], NDArray[np.float32]]:
    """Pad passages with vectors near them: 0.7 of a real one plus unit noise, normalised.

    So queries find padding, too, with the text of the passage that it is near.
    """
    missing = max(0, size - len(passages))
    dice = np.random.default_rng(seed)
    rows = dice.integers(len(passages), size=missing)
    padding = np.empty((missing, vectors.shape[1]), dtype=np.float32)
    for start in range(0, missing, _CHUNK):
        part = rows[start : start + _CHUNK]
        noise = dice.standard_normal((len(part), vectors.shape[1]), dtype=np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        noise += np.float32(NEARNESS) * vectors[part]
        padding[start : start + _CHUNK] = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    near = [Passage(f"padding-{n}", passages[row].text) for n, row in enumerate(rows)]
    return [*passages, *near], np.concatenate([vectors, padding])


def padded_texts(passages: Sequence[Passage], size: int, seed: int = 0) -> list[Passage]:
    """Pad passages with texts of their own words in another order, for sparse stores."""
    words = np.array(" ".join(passage.text for passage in passages).split())
    dice = np.random.default_rng(seed)
    missing = max(0, size - len(passages))
    drawn = (" ".join(dice.choice(words, _PASSAGE_WORDS)) for _ in range(missing))
    return [*passages, *(Passage(f"noise-{at}", text) for at, text in enumerate(drawn))]


def _rows(folder: Path, ending: str) -> list[dict[str, Any]]:
    files = sorted(file for file in folder.glob("*.jsonl") if file.name.endswith(ending))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


def _pieces(articles: Sequence[str]) -> Iterator[Passage]:
    for number, article in enumerate(articles):
        words = article.split()
        for start in range(0, len(words), _PASSAGE_WORDS):
            text = " ".join(words[start : start + _PASSAGE_WORDS])
            yield Passage(f"article-{number}-{start // _PASSAGE_WORDS}", text)


def _vectors(folder: Path, count: int) -> NDArray[np.float32] | None:
    for file in sorted(folder.glob("*vectors.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            if "docs" in arrays and len(arrays["docs"]) == count:
                found: NDArray[np.float32] = arrays["docs"].astype(np.float32)
                return found
    return None


# The models of benchmarks: the demo's, drawn ones of any size, any Hugging Face model by name.


_DRAWN: Final = re.compile(r"random:(\d+)x(\d+)")
_HEAD: Final = 64  # the width of an attention head
_VOCABULARY: Final = 8192
_CONTEXT: Final = 2048
_KEPT: Final = 1000  # requests whose scripts are kept


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights and tokenizer, from which each engine gets a language model of its own."""

    name: str
    model: Any
    tokenizer: Any
    template: PassageTemplate = field(default_factory=PassageTemplate)

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(one.numel() for one in self.model.parameters())

    def writer(self, *, trace: bool) -> HuggingFaceLM:
        """Give a language model with caches of its own; one that keeps to scripts, if asked."""
        kind = TraceLM if trace else HuggingFaceLM
        return kind(self.model, self.tokenizer, template=self.template)


def load_model(name: str, texts: Sequence[str]) -> LoadedModel:
    """Load a model, or draw one.

    Args:
        name: "demo"; "random:4x256", a Llama of 4 layers and width 256 whose weights are
            drawn and whose vocabulary is learned from the texts: its words mean nothing, its
            passes cost what they cost; or a folder or hub name.
        texts: what a drawn model's vocabulary is made of.

    Raises:
        ConfigError: a drawn model of a size that there cannot be.
        ModelError: there is none of this name.
    """
    drawn = _DRAWN.fullmatch(name)
    if drawn is None:
        path = str(MODEL) if name == "demo" else name
        loaded = HuggingFaceLM.from_pretrained(path)
        template = PassageTemplate(prompt="{prompt}\n") if name == "demo" else PassageTemplate()
        return LoadedModel(name, loaded.model, loaded.tokenizer, template)
    layers, width = map(int, drawn.groups())
    if layers < 1 or width < _HEAD or width % _HEAD:
        raise ConfigError(
            f"{name!r}: layers must be at least 1 and the width a multiple of {_HEAD}"
        )
    return LoadedModel(name, _drawn(layers, width), vocabulary(texts))


def vocabulary(texts: Sequence[str], size: int = _VOCABULARY) -> Any:
    """Learn byte pairs from texts: about four letters a token, as large models have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast  # its constructor is untyped
    return fast(tokenizer_object=tokenizer, bos_token="<s>")  # noqa: S106


def _drawn(layers: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD,
        num_key_value_heads=width // _HEAD,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


class TraceLM(HuggingFaceLM):
    """Writes what `Request.context` says, a text, and does all the passes that writing takes.

    So the queries drift as those of a real article do, whatever the model is worth, and
    every pass over passages, prompt and tokens costs what it costs. What is written does not
    depend on the passages: behind a wrong guess the same questions come again, as they do
    where a text reconverges.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what a `HuggingFaceLM` takes."""
        super().__init__(*args, **kwargs)
        self._scripts: dict[int, list[int]] = {}  # by owner

    def begin(self, request: Request) -> Draft:
        """Tokenise the prompt, and what is to be written.

        Raises:
            InputError: there is no script, or it is shorter than the answer.
        """
        draft = super().begin(request)
        if not isinstance(request.context, str):
            raise InputError("a trace needs the text to write in Request.context")
        with self._tokenizer_lock:
            script = self.tokenizer.encode(f" {request.context}", add_special_tokens=False)
        if len(script) < request.max_tokens:
            raise InputError(
                f"the script has {len(script)} tokens, fewer than max_tokens={request.max_tokens}"
            )
        self._scripts[draft.origin.owner] = script
        self._scripts.pop(draft.origin.owner - _KEPT, None)
        return draft

    def _next_token(self, draft: Draft, lineage: PrefillSchedule, logits: torch.Tensor) -> int:
        super()._next_token(draft, lineage, logits)  # choosing is part of the cost
        return self._scripts[draft.origin.owner][len(draft.tokens)]


# Builds the store of a case, here or in another process, and the replica that guesses for it.


REPLICA: Final = "faiss-hnsw"


@dataclass(frozen=True, slots=True)
class Shelves:
    """The passages of a benchmark with their vectors, made once for all its stores."""

    library: Library
    encoder: Encoder
    vectors: NDArray[np.float32]  # of the real passages

    @classmethod
    def of(cls, library: Library, encoder: Encoder) -> "Shelves":
        """Encode the passages, unless vectors of this encoder's dimension came with them."""
        vectors = library.vectors
        if vectors is None or vectors.shape[1] != np.asarray(encoder("a")).shape[0]:
            vectors = encode_all(encoder, library.passages)
        return cls(library, encoder, vectors)

    def opened(self, store: Store) -> Any:
        """Give the store as `with` wants it: what is searched, while the case lasts."""
        return _opened(self, store)

    def speculators(self, arm: Arm, retriever: Any) -> Speculators:
        """Give what guesses; nothing where that is as the settings have it.

        A request's cache alone with the paper's schedules; a pool, and behind it a replica of the
        real passages, which are all that count.
        """
        if arm.guesses_alone:
            return lambda: [self._pool(arm, retriever)]
        if not arm.replica:
            return ()
        passages = self.library.passages
        index = open_retriever(
            REPLICA, passages, encoder=self.encoder, vectors=self.vectors, k=retriever.k
        )
        return self._pool(arm, retriever), Replica(index, of=retriever)

    @staticmethod
    def _pool(arm: Arm, retriever: Any) -> PassageCache:
        return PassageCache(retriever, capacity=arm.capacity, eviction=arm.eviction)


@contextmanager
def _opened(shelves: Shelves, store: Store) -> Iterator[PoolableRetriever]:
    settings = dict(store.settings)
    if store.backend not in DENSE:
        texts = padded_texts(shelves.library.passages, store.size)
        yield _at_distance(open_retriever(store.backend, texts, k=store.k, **settings), store)
        return
    passages, vectors = padded(shelves.library.passages, shelves.vectors, store.size)
    if store.backend != "numpy-flat":
        given = {"vectors": vectors, "k": store.k, **settings}
        built = open_retriever(store.backend, passages, encoder=shelves.encoder, **given)
        yield _at_distance(built, store)
        return
    here = NumpyFlat(
        DenseCorpus(passages, vectors, shelves.encoder),
        k=store.k,
        threads=store.threads if store.place == "here" else None,
    )
    if store.place == "here":
        yield _at_distance(here, store)
        return
    with tempfile.TemporaryDirectory(prefix="ralmspec-bench-") as work:
        folder = Path(work) / "kb"
        save(NumpyFlat(DenseCorpus(passages, vectors), k=store.k), folder)
        beside = store.place == "beside"
        with (
            core_for_another() if beside else nullcontext() as core,
            service(folder, wait_s=store.wait_s, threads=store.threads, core=core) as address,
        ):
            yield ServedStore(address, here)


def _at_distance(built: Any, store: Store) -> Any:
    return far_away(built, store.wait_s) if store.wait_s else built
