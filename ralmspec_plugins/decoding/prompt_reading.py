"""A text read behind a prompt of a draft model's own, with the logits after its tokens."""

from typing import Final

from torch import Tensor

from ralmspec_plugins.lm.kv_cache import ModelRunner, Run, common_length

_KEPT: Final = 64  # logits of the last tokens that are kept

Tokens = tuple[int, ...]


class PromptReading:
    """A prompt, read in one pass, and a text behind it of which tokens are added and removed.

    Read one by one (`singly`), each token has a pass of its own, whatever was read and removed
    before: its logits are then a function of prompt and text, to the last bit.
    """

    def __init__(self, runner: ModelRunner, prompt: Tokens) -> None:
        """Read a prompt.

        Args:
            runner: runs a model whose cache can be cropped.
            prompt: at least one token.
        """
        self.prompt = prompt
        self._runner = runner
        self._run: Run = runner.start(prompt)
        self._first = self._run.logits
        self._logits: dict[int, Tensor] = {}  # by the number of the text's tokens

    def after(self, text: Tokens, *, singly: bool) -> Tensor:
        """Return the logits after a text: [1, vocabulary], float32.

        Args:
            text: tokens behind the prompt; what was read of another text is removed.
            singly: whether each token has its own pass. Otherwise several missing tokens are
                read in one pass.
        """
        if not text:
            return self._first
        run, length = self._run, common_length(self._run.tokens, text)
        if singly:
            length = min(length, run.scheduled)
        if length == len(text) and length in self._logits:
            return self._logits[length]
        self._keep(min(length, len(text) - 1))
        missing = text[len(run.tokens) :]
        if singly or len(missing) == 1:
            for token in missing:
                self._runner.feed(run, token)
                self._note()
        else:
            rows = self._runner.read_rows(run, missing, range(-1, len(missing) - 1))
            self._runner.keep_rows(run, rows, range(len(missing)))
            self._note()
        return self._logits[len(text)]

    def unread(self, text: Tokens) -> int:
        """Return how many tokens of a text would have to be read for the logits after it."""
        return len(text) - common_length(self._run.tokens, text)

    def _keep(self, length: int) -> None:
        self._runner.crop(self._run, length)
        for known in [known for known in self._logits if known > length]:
            del self._logits[known]

    def _note(self) -> None:
        length = len(self._run.tokens)
        self._logits[length] = self._run.logits
        self._logits.pop(length - _KEPT, None)
