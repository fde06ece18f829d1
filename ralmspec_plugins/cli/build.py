"""Creation of the store, the model, the workload and the engines from options."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import typer

from ralmspec_plugins.cli.options import (
    PLAIN,
    Count,
    DrafterName,
    OptionalCount,
    Seconds,
    changed,
)
from ralmspec_plugins.cli.output import notes, seconds
from ralmspec_plugins.config import Settings
from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.demo.language import speaks
from ralmspec_plugins.diagnosis import far_away
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import MissingExtraError, ModelError
from ralmspec_plugins.protocols import LanguageModel, Progress, Retriever, Workload
from ralmspec_plugins.retrieval import Encoder, HashingEncoder, KnowledgeBase, load
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.registry import read
from ralmspec_plugins.types import Answer, Passage, Request
from ralmspec_plugins.workloads import workload_of

DEMO: Final = "demo"  # the name of the demo's own model
WARM_TOKENS: Final = 4
_SAMPLES: Final = 16  # passages that are looked at
_TOY: Final = (
    "The demo's own model writes: it is tiny, and knows no language but that of the demo's "
    "invented world. For another one: --model"
)
_DEMO_PROMPT: Final = "{prompt}\n"  # its prompts end with a line break


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """A saved knowledge base, and the settings of its search.

    Options:
        kb: A saved knowledge base (see: ralmspec index).
        encoder: The encoder, if it has moved since the knowledge base was saved.
        k: Passages for each query. (default: as saved)
        interval: Tokens generated between two searches.
        query_tokens: Number of last tokens in a query.
        prefetch: Hits that each search adds to the passage cache. (default: 20 k)
        latency: Simulate a remote store: add this to each round trip, such as 50ms.
    """

    PANEL: ClassVar[str] = "Search"

    kb: Path | None = None
    encoder: str | None = None
    k: OptionalCount = None
    interval: Count = 4
    query_tokens: Count = 32
    prefetch: OptionalCount = None
    latency: Seconds = 0.0

    def open(self, device: str | None = None) -> Retriever:
        """Load the knowledge base, with the simulated latency of a remote store if one is set.

        Args:
            device: the device of the encoder's model.

        Raises:
            BadParameter: none was given.
            ConfigError: there is no such device.
        """
        encoder = make_encoder(self.encoder, device)
        store = load(self.folder, encoder, self.k, encoder_device=device)
        return at_distance(store, self.latency)

    @property
    def folder(self) -> Path:
        """The knowledge base's folder.

        Raises:
            BadParameter: none was given.
        """
        if self.kb is None:
            raise typer.BadParameter("Missing option '--kb'.")
        return self.kb

    def samples(self) -> list[str]:
        """Return some passages' texts, from all of the knowledge base."""
        passages = read(self.folder, verify="sizes").passages
        return [
            passages[row].text for row in range(0, len(passages), -(-len(passages) // _SAMPLES))
        ]

    def check_unused(self, *others: str) -> None:
        """Check that nothing about searching was given; the encoder is that of chunks then.

        Args:
            others: further options about searching that were given.

        Raises:
            BadParameter: a knowledge base, a setting of its search or another option was given.
        """
        given = [*changed(self, besides="encoder"), *others]
        if given:
            raise typer.BadParameter(
                f"{', '.join(given)} cannot be given with --long-context, which searches nothing"
            )

    def workload(
        self, lm: LanguageModel[Any], name: str = "interval", **settings: Any
    ) -> Workload[Any]:
        """Return the workload of this name for a model, without the settings of others.

        Raises:
            ConfigError: a setting is out of range, or the model lacks what the workload needs.
        """
        settings |= {"interval": self.interval, "query_tokens": self.query_tokens}
        return workload_of(name, lm, **settings)


def told_model(model: str | None, texts: Iterable[str]) -> str:
    """Return the model's name; for the demo's own, print what it is.

    Args:
        model: the option's value.
        texts: samples of what the model is to read.

    Raises:
        ModelError: no model was chosen, and the demo's own was not made for these texts.
    """
    if model is not None and model != DEMO:
        return model
    if model is None and not all(map(speaks, texts)):
        raise ModelError(
            "give --model PATH, a causal model's folder or its name on the hub. Without it the "
            "demo's own model would write, which knows no language but that of the demo's invented "
            "world, and these texts are of another one; --model demo takes it all the same"
        )
    notes().print(_TOY, style="yellow", soft_wrap=True)
    return DEMO


def use_threads(threads: int | None, model: str) -> str:
    """Set the number of torch's threads (for the demo's model: one); return the model's path.

    Raises:
        ModelError: the demo's model is not in this installation.
        MissingExtraError: transformers or torch is not installed.
    """
    demo = model == DEMO
    if demo and not (MODEL / "config.json").is_file():
        raise ModelError(
            f"the demo's model is not in this installation ({MODEL}); "
            "give another one with --model PATH"
        )
    torch: Any = optional("torch", "hf", "torch")
    _hide_bars()
    if threads is None and demo:
        threads = 1  # the demo's model is too small for several threads
    if threads is not None:
        torch.set_num_threads(threads)
    return str(MODEL) if demo else model


def _hide_bars() -> None:
    """Disable the progress bars of transformers."""
    optional("transformers.utils.logging", "hf", "transformers").disable_progress_bar()


def sampling_of(temperature: float) -> Any:
    """Return the sampling settings: greedy at 0, else sampled."""
    from ralmspec_plugins.lm import Greedy, Sampling

    return Sampling(temperature=temperature) if temperature else Greedy()


def decoding_of(drafter: DrafterName, corpus: Path | None = None) -> Any:
    """Return how a model's tokens are speculated on; `None` for one token a pass.

    Raises:
        IndexFileError: there is no token corpus in the folder, or a damaged one.
    """
    if drafter == "none":
        return None
    from ralmspec_plugins.decoding import CorpusDrafter, Decoding, PassageDrafter, SuffixDrafter

    if corpus is not None:
        return Decoding(drafter=[SuffixDrafter(), CorpusDrafter(corpus)])
    kinds = {"suffix": (SuffixDrafter,), "passages": (PassageDrafter,)}
    both = (SuffixDrafter, PassageDrafter)
    return Decoding(drafter=[kind() for kind in kinds.get(drafter, both)])


class Weights:
    """A loaded model, from which each run gets a language model with separate caches.

    So the times of two runs can be compared, since no run reuses the other's
    passages.
    """

    def __init__(
        self,
        model: str,
        threads: int | None,
        *,
        device: str | None = None,
        temperature: float = 0.0,
        template: str | None = None,
        chat: Any = None,
        drafter: DrafterName = "none",
        corpus: Path | None = None,
        passage_tokens: int = 256,
        decoding: Callable[[str], Any] | None = None,
    ) -> None:
        """Load a model, or `DEMO`, and generate a few tokens to warm it up.

        Args:
            model: its folder or name.
            threads: torch's.
            device: the model's; the CPU by default.
            temperature: 0 for greedy decoding.
            template: the text around a question.
            chat: where passages stand in the model's chat template.
            drafter: drafts tokens, except in plain runs.
            corpus: the folder of the token corpus that the drafter "corpus" takes them from.
            passage_tokens: the maximum number of tokens of a passage.
            decoding: returns how tokens are drafted in a mode; replaces `drafter`.

        Raises:
            ConfigError: there is no such device.
            ModelError: the model cannot be loaded.
            MissingExtraError: transformers or torch is not installed.
        """
        from ralmspec_plugins.lm import HuggingFaceLM, PassageTemplate

        prompt = template or (_DEMO_PROMPT if model == DEMO else "{prompt}")
        passages = PassageTemplate(prompt=prompt, chat=chat)
        self._style: dict[str, Any] = {
            "sampling": sampling_of(temperature),
            "template": passages,
            "passage_tokens": passage_tokens,
        }
        self._kind = HuggingFaceLM
        self._decoding = decoding or (
            lambda mode: None if mode == PLAIN else decoding_of(drafter, corpus)
        )
        path = use_threads(threads, model)
        self._loaded = HuggingFaceLM.from_pretrained(path, device=device)
        lm = self._made(None)
        draft = lm.begin(Request(prompt="Hello", max_tokens=WARM_TOKENS))
        lm.write(draft, [Passage("", "Hello")], WARM_TOKENS, Progress())

    def language_model(self, mode: str = PLAIN) -> LanguageModel[Any]:
        """Return the model with empty caches; with a drafter, if there is one, unless plain."""
        return self._made(self._decoding(mode))

    def _made(self, decoding: Any) -> LanguageModel[Any]:
        loaded = self._loaded
        lm: LanguageModel[Any] = self._kind(
            loaded.model, loaded.tokenizer, decoding=decoding, **self._style
        )
        return lm


def make_encoder(name: str | None, device: str | None = None) -> Encoder | None:
    """Return an encoder: "hashing", or a sentence-transformers folder or name on the hub.

    Raises:
        ConfigError: there is no such device.
        ModelError: it cannot be loaded.
        MissingExtraError: sentence-transformers is not installed.
    """
    if name is None or name == "hashing":
        return None if name is None else HashingEncoder()
    from ralmspec_plugins.retrieval.encoders import SentenceTransformerEncoder

    optional("sentence_transformers", "embeddings", "sentence-transformers")
    _hide_bars()
    return SentenceTransformerEncoder(name, device=device or "cpu")


def at_distance(store: KnowledgeBase, latency_s: float, *, said: bool = False) -> Retriever:
    """Return a store with a simulated latency, and print that unless it was `said` before."""
    if not latency_s:
        return store
    if not said:
        notes().print(added(latency_s), style="yellow")
    return far_away(store, latency_s)


def added(latency_s: float) -> str:
    """Return the label of a simulated latency, empty for 0."""
    if not latency_s:
        return ""
    return f"added: {seconds(latency_s)} per round trip, simulated remote store"


def default_backend() -> str:
    """Return the best local backend that needs no model: bm25s if it is installed."""
    try:
        optional("bm25s", "bm25", "bm25s")
    except MissingExtraError:
        return "numpy-flat"
    return "bm25s"


@contextmanager
def engines(
    modes: tuple[str, ...],
    workload: Callable[[str], Workload[Any]],
    retriever: Retriever,
    settings: Settings,
) -> Iterator[Mapping[str, Engine]]:
    """Open one engine for each mode, each with a separate workload and caches."""
    with ExitStack() as stack:
        yield {
            mode: stack.enter_context(
                Engine(workload(mode), retriever, replace(settings, speculate=mode != PLAIN))
            )
            for mode in modes
        }


def answered(engine: Engine, request: Request, show: Callable[[str], None]) -> Answer:
    """Answer a request, and stream its text."""
    with closing(engine.stream(request)) as stream:
        for piece in stream:
            show(piece)
        return stream.answer
