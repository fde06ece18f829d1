"""A request to a `KNNLanguageModel`, from keywords."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypedDict

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.types import Request


class RequestOptions(TypedDict, total=False):
    """The keywords of `KNNLanguageModel.generate` and its variants."""

    max_tokens: int
    seed: int
    stop: str | Sequence[str]
    sampling: Greedy | Sampling | None
    deadline_s: float | None
    plain: bool


class KNNRequest:
    """A request, and the settings of its answer."""

    def __init__(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,  # as a `Request`'s
        seed: int = 0,
        stop: str | Sequence[str] = (),
        sampling: Greedy | Sampling | None = None,
        deadline_s: float | None = None,
        plain: bool = False,
    ) -> None:
        """Create a request from keywords; an unknown one is a `TypeError`.

        Raises:
            ConfigError: a value has another type, or is out of range.
        """
        _check("max_tokens", max_tokens, Integral, "an integer")
        _check("seed", seed, Integral, "an integer")
        _check("stop", stop, str | list | tuple, "a text or a list of texts")
        for one in (stop,) if isinstance(stop, str) else stop:
            _check("stop", one, str, "a text or a list of texts")
        if sampling is not None:
            _check("sampling", sampling, Greedy | Sampling, "Greedy, Sampling or None")
        if deadline_s is not None:
            _check("deadline_s", deadline_s, Real, "a number of seconds or None")
        self.request = Request(
            prompt=prompt,
            max_tokens=max_tokens,
            seed=seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            deadline_s=deadline_s,
        )
        self.sampling = sampling
        self.plain = plain


def _check(name: str, value: object, kind: Any, what: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name} must be {what}, got {value!r}")
