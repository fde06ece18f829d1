"""The text of a request that no later step can change."""

import logging
from typing import Any

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.protocols import Workload
from ralmspec_plugins.steps import Failure, Step

_log = logging.getLogger(__name__)


class SettledText:
    """The settled text of a request: it only grows, and a retried step must write it again.

    `text`: the settled text so far.
    `contradiction`: the failure of a step that did not write the settled text again.
    """

    def __init__(self, workload: Workload[Any]) -> None:
        """Create an empty text."""
        self.text = ""
        self.contradiction: Failure | None = None
        self._workload = workload
        self._complained = False

    def grow(self, state: Any) -> bool:
        """Settle the new part of a state's text; return whether there is one."""
        text = self._of(state)
        if len(text) <= len(self.text):
            return False
        self.text = text
        return True

    def contradicts(self, step: Step, state: Any, *, whole: bool) -> bool:
        """Return whether a retried step contradicts the text that was settled before.

        Args:
            step: the step.
            state: its state, partial or not.
            whole: whether the state is that of the whole step.
        """
        if step.interruption is None:
            return False
        text = self._of(state)
        if text.startswith(self.text) or (not whole and self.text.startswith(text)):
            return False
        self.contradiction = Failure(step.interruption, isolated=True)
        return True

    def _of(self, state: Any) -> str:
        """Return a state's settled text; none if the workload cannot say, as no plain loop asks."""
        try:
            text = self._workload.settled(state)
            if not isinstance(text, str):
                raise InputError(f"settled() must return a text, got {text!r:.200}")  # noqa: TRY301
        except Exception:  # noqa: BLE001 the plain loop does not call it
            if not self._complained:
                _log.warning(
                    "%r: settled() failed; the text is shown later", self._workload, exc_info=True
                )
            self._complained = True
            return ""
        return text
