"""Keeps what a request's failed calls have told: the one that counts is told of."""

from typing import Generic, TypeVar

RecordingT = TypeVar("RecordingT")


class Failures(Generic[RecordingT]):
    """The errors that calls of a host have raised for one request, with their recordings.

    >>> failures, error = Failures[str](), ValueError("no")
    >>> failures.note(error, "what it told")
    >>> failures.recording_of(error), failures.recording_of(ValueError("no"))
    ('what it told', None)
    >>> len(failures)
    1
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._noted: list[tuple[BaseException, RecordingT]] = []

    def __len__(self) -> int:
        """Count them."""
        return len(self._noted)

    def note(self, error: BaseException, recording: RecordingT) -> None:
        """Note what a call raised: if it counts, what it told does too."""
        self._noted.append((error, recording))

    def recording_of(self, error: BaseException) -> RecordingT | None:
        """Give the recording of the call that raised this very error."""
        return next((made for raised, made in self._noted if raised is error), None)
