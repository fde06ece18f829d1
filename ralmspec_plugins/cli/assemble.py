"""Put together what the options name: the store, the model, the workload, the schedule."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ralmspec_plugins.cli.options import ChatPlace, ScheduleName
from ralmspec_plugins.cli.output import notes, seconds
from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.diagnosis import far_away
from ralmspec_plugins.errors import ConfigError, MissingExtraError, ModelError
from ralmspec_plugins.protocols import LanguageModel, Progress, Retriever, Workload
from ralmspec_plugins.retrieval import Encoder, HashingEncoder, KnowledgeBase, load
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.scheduling.schedules import Continuous, FixedStride, OptimalStride, Schedule
from ralmspec_plugins.types import Passage, Request
from ralmspec_plugins.workloads import workload_of

_WARM_TOKENS = 4
DEMO_PROMPT = "{prompt}\n"  # its prompts are lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a model is asked, and how it chooses tokens."""

    temperature: float = 0.0  # 0: always the most likely token
    template: str | None = None  # as it is; for the demo's model, a line of its own
    chat: ChatPlace | None = None


def use_threads(threads: int | None, model: str | None) -> None:
    """Prepare torch and transformers for a command: quiet, and on so many threads.

    Args:
        threads: for torch; one for the demo's model unless given, else torch's choice.
        model: a folder or a name; `None` for the demo's.

    Raises:
        MissingExtraError: transformers or torch is not installed.
    """
    torch: Any = optional("torch", "hf", "torch")
    no_bars()
    if threads is None and model is None:
        threads = 1  # the demo's model is too small to be shared out
    if threads is not None:
        torch.set_num_threads(threads)


class Weights:
    """A loaded model, from which each run gets a language model with caches of its own.

    So a run never finds passages that another one has read already, and two
    runs can be compared in time.
    """

    def __init__(self, path: str | None, style: Style, threads: int | None) -> None:
        """Load a model, or the demo's.

        Args:
            path: a folder, or a name on the hub; `None` for the demo's.
            style: how it is asked, and how tokens are chosen.
            threads: for torch; one for the demo's model unless given.

        Raises:
            ModelError: there is none.
            MissingExtraError: transformers or torch is not installed.
        """
        name = demo_model() if path is None else path
        prompt = DEMO_PROMPT if path is None else "{prompt}"
        self._sampling, self._template = _writing(style, prompt)
        use_threads(threads, path)
        from ralmspec_plugins.lm import HuggingFaceLM

        self._kind = HuggingFaceLM
        self._loaded = HuggingFaceLM.from_pretrained(name)
        self._warm_up()

    def language_model(self) -> LanguageModel[Any]:
        """Give the model with empty caches."""
        lm: LanguageModel[Any] = self._kind(
            self._loaded.model,
            self._loaded.tokenizer,
            sampling=self._sampling,
            template=self._template,
        )
        return lm

    def _warm_up(self) -> None:
        """Write a little, so that no run pays for what is set up once."""
        lm = self.language_model()
        draft = lm.begin(Request(prompt="Hello", max_tokens=_WARM_TOKENS))
        lm.write(draft, [Passage("", "Hello")], _WARM_TOKENS, Progress())


def no_bars() -> None:
    """Keep transformers' own progress bars from standing among our messages."""
    optional("transformers.utils.logging", "hf", "transformers").disable_progress_bar()


def demo_model() -> str:
    """Give the demo's model.

    Raises:
        ModelError: it is not in this installation.
    """
    if not (MODEL / "config.json").is_file():
        raise ModelError(
            f"the demo's model is not in this installation ({MODEL}); "
            "give another one with --model PATH"
        )
    return str(MODEL)


def _writing(style: Style, prompt: str) -> tuple[Any, Any]:
    from ralmspec_plugins.lm import Greedy, PassageTemplate, Sampling

    sampling = Sampling(temperature=style.temperature) if style.temperature else Greedy()
    chat: Any = None if style.chat is None else style.chat.value
    return sampling, PassageTemplate(prompt=style.template or prompt, chat=chat)


def make_encoder(name: str | None) -> Encoder | None:
    """Make an encoder: "hashing", or a sentence-transformers folder or name on the hub.

    Raises:
        ModelError: it cannot be loaded.
        MissingExtraError: sentence-transformers is not installed.
    """
    if name is None or name == "hashing":
        return None if name is None else HashingEncoder()
    from ralmspec_plugins.retrieval.encoders import SentenceTransformerEncoder

    optional("sentence_transformers", "embeddings", "sentence-transformers")
    no_bars()
    return SentenceTransformerEncoder(name)


def open_store(path: Path, encoder: str | None, k: int | None, latency_s: float) -> Retriever:
    """Load a saved knowledge base, and put it at a simulated distance if there is one."""
    return at_distance(load(path, make_encoder(encoder), k), latency_s)


def at_distance(store: KnowledgeBase, latency_s: float, *, said: bool = False) -> Retriever:
    """Put a store at a simulated distance, and say so unless that was `said` already."""
    if not latency_s:
        return store
    if not said:
        notes().print(added(latency_s), style="yellow")
    return far_away(store, latency_s)


def default_backend() -> str:
    """Name the best local backend that needs no model: bm25s if it is installed."""
    try:
        optional("bm25s", "bm25", "bm25s")
    except MissingExtraError:
        return "numpy-flat"
    return "bm25s"


def added(latency_s: float) -> str:
    """Label a simulated cost."""
    return f"added: {seconds(latency_s)} per round trip, simulated remote store"


def make_workload(
    name: Any, lm: LanguageModel[Any], interval: int, query_tokens: int
) -> Workload[Any]:
    """Put a workload around a model."""
    return workload_of(name, lm, interval=interval, query_tokens=query_tokens)


def make_schedule(
    name: ScheduleName,
    *,
    stride: int | None = None,
    lanes: int | None = None,
    window: int | None = None,
    overlap: bool | None = None,
    gamma_limit: float | None = None,
) -> Schedule:
    """Make a schedule of the options that were given.

    Raises:
        ConfigError: an option that this schedule does not have, or a value out of range.
    """
    kinds: dict[ScheduleName, tuple[Any, tuple[str, ...]]] = {
        ScheduleName.CONTINUOUS: (Continuous, ("lanes", "window")),
        ScheduleName.FIXED: (FixedStride, ("stride", "overlap")),
        ScheduleName.OS3: (OptimalStride, ("window", "overlap", "gamma_limit")),
    }
    kind, known = kinds[name]
    options = {
        "stride": stride,
        "lanes": lanes,
        "window": window,
        "overlap": overlap,
        "gamma_limit": gamma_limit,
    }
    given = {key: value for key, value in options.items() if value is not None}
    foreign = [_option(key) for key in given if key not in known]
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)} does not belong to the schedule {name.value!r}, "
            f"which takes {' and '.join(map(_option, known))}"
        )
    schedule: Schedule = kind(**given)
    return schedule


def _option(name: str) -> str:
    """Write a setting's name as an option.

    >>> _option("gamma_limit")
    '--gamma-limit'
    """
    return f"--{name.replace('_', '-')}"
