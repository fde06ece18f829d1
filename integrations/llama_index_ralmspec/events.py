"""Events of our own, for LlamaIndex' dispatcher: what is guessed, verified and rolled back."""

from typing import TypeAlias

from llama_index.core.instrumentation.events import BaseEvent


class GuessEvent(BaseEvent):
    """A step is written ahead of its search, with these nodes.

    Attributes:
        query_str: what the retriever is asked.
        node_ids: the nodes that are expected, best first.
    """

    query_str: str
    node_ids: list[str]

    @classmethod
    def class_name(cls) -> str:
        """Name the class."""
        return "RalmSpecGuessEvent"


class VerificationEvent(BaseEvent):
    """The search for a query that was guessed has answered.

    Attributes:
        query_str: what the retriever was asked.
        right: whether the guess was as good as the answer.
    """

    query_str: str
    right: bool

    @classmethod
    def class_name(cls) -> str:
        """Name the class."""
        return "RalmSpecVerificationEvent"


class RollbackEvent(BaseEvent):
    """What was written behind a wrong guess is dropped.

    Attributes:
        segments: calls of the model, finished or not, that came to nothing.
    """

    segments: int

    @classmethod
    def class_name(cls) -> str:
        """Name the class."""
        return "RalmSpecRollbackEvent"


OwnEvent: TypeAlias = GuessEvent | VerificationEvent | RollbackEvent
