"""A request to a `KNNLanguageModel`, from keywords."""

from collections.abc import Sequence
from typing import TypedDict

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
            ConfigError: a value is out of range.
        """
        self.request = Request(
            prompt=prompt,
            max_tokens=max_tokens,
            seed=seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            deadline_s=deadline_s,
        )
        self.sampling = sampling
        self.plain = plain
