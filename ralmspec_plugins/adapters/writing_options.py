"""How a local model of a host writes: settings that a call may replace, and what calls took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.types import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingOptions:
    """How long a text becomes, how its tokens are chosen, and where it ends."""

    max_tokens: int = 256
    temperature: float = 0.0  # 0: the most likely token
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: str | Sequence[str] | None = ()
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ConfigError: the message says which, and what was expected.
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
        """How tokens are chosen."""
        if not self.temperature:
            return Greedy(repetition_penalty=float(self.repetition_penalty))
        return Sampling(**self._drawn)

    def request(self, prompt: str) -> Request:
        """Make the request of a prompt."""
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
    """Lay a call's arguments over the settings of a host's model.

    Raises:
        NotImplementedError: tools were given.
        TypeError: an unknown argument.
        ConfigError: a value without a meaning.
    """
    name = type(model).__name__
    for tool in _TOOLS:
        if given.get(tool):
            raise NotImplementedError(f"{name} was called with {tool!r}, but {NO_TOOLS}")
    unknown = sorted(given.keys() - {*OPTIONS, *_TOOLS})
    if unknown:
        raise TypeError(f"{name}: a call takes {', '.join(OPTIONS)}, got {unknown}")
    own = {name: getattr(model, name) for name in OPTIONS}
    return WritingOptions(**{**own, **{name: given[name] for name in OPTIONS if name in given}})


def direct_options(
    model: object, given: Mapping[str, Any], decoding: object, whose: str
) -> WritingOptions:
    """Say how tokens are chosen where a host's model of ours is driven directly.

    Raises:
        ConfigError: what it is given, or has, cannot be kept to.
    """
    name = type(model).__name__
    if decoding is not None:
        raise ConfigError(f"decoding cannot be given beside a {name}, which has a drafter itself")
    options = options_of(model, given)
    if options.stop or options.deadline_s is not None:
        raise ConfigError(
            f"direct=True cannot keep to stop and deadline_s of the {name}: set them on {whose}"
        )
    return options


def check_decoding(decoding: object, *, direct: bool) -> None:
    """Refuse what cannot be a setting for tokens to be speculated on.

    Raises:
        ConfigError: it is no `Decoding`, or the model is not driven by tokens.
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


# Where a model comes from, and what it took.


_GIB: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingOptions:
    """Where a model comes from, and how its tokens are drafted."""

    tokenizer: Any = None
    drafter: Any = "suffix"
    decoding: Any = None
    dtype: Any = field(default="auto", compare=False)  # of a model that is loaded already: known
    device: Any = field(default=None, compare=False)
    cache_bytes: int = 2 * _GIB


@dataclass(frozen=True, slots=True)
class DecodingStats:
    """What all calls of a model took so far; those that were given up are among them."""

    calls: int = 0
    model_passes: int = 0
    tokens_written: int = 0
    drafts_accepted: int = 0
    decisions_retaken: int = 0

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens written in a model's pass, prefills included; `None` before the first."""
        return self.tokens_written / self.model_passes if self.model_passes else None
