"""A draft model that reads prompts of its own, and what its passes take."""

from typing import Final

from transformers import PreTrainedModel

from ralmspec_plugins.decoding.calibration import pass_clock
from ralmspec_plugins.decoding.prompt_reading import PromptReading, Tokens
from ralmspec_plugins.errors import ModelError
from ralmspec_plugins.lm.huggingface import context_length, vocabulary_size
from ralmspec_plugins.lm.kv_cache import ModelRunner, is_croppable

_RECENT: Final = 16.0  # time constant of the running means, in passes
_TIMED: Final = 16  # tokens in front of the pass that is timed when a model is bound
_PREFILL: Final = 128  # tokens of the prompt whose prefill is timed then


def draft_runner(model: PreTrainedModel) -> ModelRunner:
    """Return the runner of a draft model, which keeps no caches.

    Raises:
        ModelError: its cache cannot be cropped (sliding windows, recurrent states).
    """
    runner = ModelRunner(model.train(False), 0)
    if not is_croppable(runner.empty_cache()):
        raise ModelError(
            "a draft model needs full attention in all layers: its cache is cropped after "
            f"each draft, and that of {type(model).__name__} cannot be cropped"
        )
    return runner


class DraftReader:
    """A draft model, and what its passes take."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Time the model's passes.

        Raises:
            ModelError: its cache cannot be cropped.
        """
        self.model = model
        self.runner = draft_runner(model)
        self.positions = context_length(model)
        self.vocabulary = vocabulary_size(model)
        self.clock = pass_clock(self.runner.device)
        self._steps: dict[int, float] = {}  # by the order of magnitude of the context's length
        self.short_s, self._token_s = self._time_passes()

    def read(self, prompt: Tokens) -> PromptReading:
        """Read a prompt."""
        began_s = self.clock()
        reading = PromptReading(self.runner, prompt)
        took_s = (self.clock() - began_s) / len(prompt)
        self._token_s += (took_s - self._token_s) / 2.0
        return reading

    def has_room(self, *lengths: int) -> bool:
        """Return whether the model has positions for so many tokens."""
        return self.positions is None or sum(lengths) <= self.positions

    def prefill_s(self, tokens: int) -> float:
        """Return the expected seconds of reading a prompt of so many tokens."""
        return self._token_s * tokens

    def step_s(self, length: int) -> float | None:
        """Return the recent seconds of a pass behind so many tokens; `None` if not measured."""
        return self._steps.get(length.bit_length())

    def note_step(self, length: int, took_s: float) -> None:
        """Record the seconds of a pass."""
        key = length.bit_length()
        before = self._steps.get(key, took_s)
        self._steps[key] = before + (took_s - before) / _RECENT

    def _time_passes(self) -> tuple[float, float]:
        """Return the seconds of a pass behind few tokens, and of a token in a prefill."""
        token, took = self.vocabulary // 2, []
        most = _PREFILL if self.positions is None else min(_PREFILL, self.positions // 2)
        for _ in range(3):  # the first warms up
            run = self.runner.start([token] * min(_TIMED, most))
            began_s = self.clock()
            self.runner.feed(run, token)
            run.logits.argmax().item()  # waits for the device
            took.append(self.clock() - began_s)
        began_s = self.clock()
        self.runner.start([token] * most).logits.argmax().item()
        return min(took), (self.clock() - began_s) / most
