"""Generation options of a host's local model, which a call may replace, and statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ralmspec_plugins.arguments import refuse_unknown
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.types import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingOptions:
    """The maximum number of tokens, sampling settings and stop strings of a text."""

    max_tokens: int = 256
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: str | Sequence[str] | None = ()
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: an option is invalid; the message states what is expected.
        """
        for name in ("max_tokens", "top_k", "seed"):
            _check_number(name, getattr(self, name), int)
        for name in ("temperature", "top_p", "repetition_penalty"):
            _check_number(name, getattr(self, name), int, float)
        if self.deadline_s is not None:
            _check_number("deadline_s", self.deadline_s, int, float)
        if self.temperature < 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not isinstance(self.stop, str | list | tuple | None) or not all(
            isinstance(one, str) for one in self.stop or ()
        ):
            raise ConfigError(f"stop must be a text or a list of texts, got {self.stop!r}")
        self.request("")
        Sampling(**{**self._drawn, "temperature": self.temperature or 1.0})

    @property
    def sampling(self) -> Greedy | Sampling:
        """The sampling settings."""
        if not self.temperature:
            return Greedy(repetition_penalty=float(self.repetition_penalty))
        return Sampling(**self._drawn)

    def request(self, prompt: str) -> Request:
        """Return the request of a prompt."""
        return Request(
            prompt=prompt,
            max_tokens=self.max_tokens,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            deadline_s=self.deadline_s,
        )

    @property
    def _drawn(self) -> dict[str, Any]:
        return {
            "temperature": float(self.temperature),
            "top_k": self.top_k,
            "top_p": float(self.top_p),
            "repetition_penalty": float(self.repetition_penalty),
        }


def _check_number(name: str, value: object, *kinds: type) -> None:
    if type(value) not in kinds:
        what = "a number" if float in kinds else "a whole number"
        raise ConfigError(f"{name} must be {what}, got {value!r}")


OPTIONS: Final = tuple(one.name for one in fields(WritingOptions))
_TOOLS: Final = ("tools", "tool_choice", "functions", "function_call", "response_format")
NO_TOOLS: Final = (
    "it calls no tools and writes no structured output: it only continues texts. Use a model "
    "whose server calls tools, or a prompt that says how the answer is to look"
)


def options_of(model: object, given: Mapping[str, Any]) -> WritingOptions:
    """Return the options of a host's model, overridden by a call's arguments.

    Raises:
        NotImplementedError: tools were given.
        TypeError: an argument is unknown.
        ConfigError: a value is invalid.
    """
    name = type(model).__name__
    for tool in _TOOLS:
        if given.get(tool):
            raise NotImplementedError(f"{name} was called with {tool!r}, but {NO_TOOLS}")
    refuse_unknown(given.keys() - {*_TOOLS}, OPTIONS)
    own = {name: getattr(model, name) for name in OPTIONS}
    return WritingOptions(**{**own, **{name: given[name] for name in OPTIONS if name in given}})


def direct_options(
    model: object, given: Mapping[str, Any], decoding: object, whose: str
) -> WritingOptions:
    """Return the sampling settings of a model of this package with `direct=True`.

    Raises:
        ConfigError: an option is not supported.
    """
    name = type(model).__name__
    if decoding is not None:
        raise ConfigError(f"decoding cannot be given with a {name}, which has its own drafter")
    options = options_of(model, given)
    if options.stop or options.deadline_s is not None:
        raise ConfigError(
            f"direct=True does not support stop and deadline_s of the {name}: set them on {whose}"
        )
    return options


def check_decoding(decoding: object, *, direct: bool) -> None:
    """Check the setting of token-level speculation.

    Raises:
        ConfigError: it is not a `Decoding`, or the model is not local.
    """
    if decoding is None:
        return
    if not callable(getattr(decoding, "decoder", None)):
        raise ConfigError(f"decoding must be a Decoding or None, got {decoding!r:.80}")
    if not direct:
        raise ConfigError(
            "decoding needs direct=True, where a local model is driven by tokens; for calls of "
            "the host's own, use a SpeculativeLLM, which has a drafter itself"
        )


# Loading options and statistics.


_GIB: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingOptions:
    """The source of a model, and its drafter."""

    tokenizer: Any = None
    drafter: Any = "suffix"
    decoding: Any = None
    dtype: Any = field(default="auto", compare=False)  # a loaded model has its own
    device: Any = field(default=None, compare=False)
    cache_bytes: int = 2 * _GIB


@dataclass(frozen=True, slots=True)
class DecodingStats:
    """The statistics of all calls of a model so far, including cancelled ones."""

    calls: int = 0
    model_passes: int = 0
    tokens_written: int = 0
    drafts_accepted: int = 0
    decisions_retaken: int = 0

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens per model pass, prefills included; `None` before the first."""
        return self.tokens_written / self.model_passes if self.model_passes else None
