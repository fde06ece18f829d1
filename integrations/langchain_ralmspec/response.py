"""A request's question and its reply: input, context and answer, in pieces that can be added."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from langchain_core.documents import Document
from langchain_core.runnables import Runnable
from langchain_core.runnables.utils import AddableDict
from typing_extensions import TypedDict

from langchain_ralmspec.documents import document_of
from langchain_ralmspec.reports import Report
from ralmspec_plugins import Answer, Retrieved
from ralmspec_plugins.adapters.documents import HostPassage
from ralmspec_plugins.adapters.events import REPORT, report_of
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Passage, passages_of

Output: TypeAlias = Literal["reply", "answer"]
_OWN: Final = ("context", "answer")


class Reply(TypedDict):
    """The reply, which also has the other keys of the input."""

    input: str
    context: list[Document]
    answer: Any  # a text, or the output parser's result


class ReportedReply(Reply):
    """The reply with `report=True`."""

    ralmspec: Report


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainShape:
    """How a chain that was passed to `speculate()` reads its input, and what it returns.

    Args:
        like: the chain, whose schemas are kept.
        takes: the input's key of the question; `None`: the input itself.
        whole: whether the rest of the chain is the model, called with input and documents.
        passes: pairs of a prompt's variable and the input's key; a key of `None` is the input
            itself. `None`: the input's own keys.
        reply: the same for the reply.
    """

    like: Runnable[Any, Any] | None = None
    takes: str | None = None
    whole: bool = False
    passes: tuple[tuple[str, str | None], ...] | None = None
    reply: tuple[tuple[str, str | None], ...] | None = None

    def question(self, value: Any) -> Any:
        """Return the question as the chain reads it.

        Raises:
            KeyError: it is missing in the input.
        """
        return value if self.takes is None or isinstance(value, str) else value[self.takes]

    def given(self, value: Any, key: str) -> dict[str, Any]:
        """Return the part of the input in the reply; a bare question under this key."""
        if self.reply is not None:
            return _chosen(self.reply, value)
        return dict(value) if isinstance(value, Mapping) else {key: value}

    def variables(self, value: Any, key: str) -> dict[str, Any]:
        """Return the inputs of the prompt, or of the rest of the chain, except the documents."""
        if self.whole:
            return {"input": value}
        return self.given(value, key) if self.passes is None else _chosen(self.passes, value)


def _chosen(keys: Iterable[tuple[str, str | None]], value: Any) -> dict[str, Any]:
    return {name: value if key is None else value[key] for name, key in keys}


def text_asked(found: Any) -> str:
    """Return the retriever's query after checking that it is a text.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(found, str):
        raise InputError(f"the query must be a text, got {type(found).__name__}: {found!r:.200}")
    return found


def question_of(value: str | Mapping[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """Return the question of an input, and the input as a dict.

    Args:
        value: a question, or a dict with one.
        key: its key in a dict; "input" and "question" are read otherwise.

    Raises:
        InputError: there is none.
    """
    if isinstance(value, str):
        return value, {key: value}
    names = list(dict.fromkeys((key, "input", "question")))
    if not isinstance(value, Mapping):
        raise InputError(
            f"the input must be a text or a dict with {' or '.join(map(repr, names))}, "
            f"got {type(value).__name__}"
        )
    question = next((value[name] for name in names if name in value), None)
    if not isinstance(question, str):
        raise InputError(
            f"the input must have a text under {' or '.join(map(repr, names))}, "
            f"got the keys {list(value)}" + (f" and {question!r}" if question is not None else "")
        )
    return question, dict(value)


def variables_of(question: str, given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the prompt's variables: the input's keys, and the question under its usual names."""
    return {"input": question, "question": question, key: question, **given}


class Pieces:
    """Converts events into the pieces of a reply; their sum is the reply."""

    def __init__(self, given: Mapping[str, Any], *, text_is_answer: bool, report: bool) -> None:
        """Create the pieces of a reply to an input.

        Keys of the input that the reply has, too, are replaced, as in the host's chains.

        Args:
            given: the part of the input in the reply.
            text_is_answer: whether the answer is the text itself.
            report: whether the reply includes its report.
        """
        own = (*_OWN, REPORT) if report else _OWN
        self._given = {key: value for key, value in given.items() if key not in own}
        self._report = report
        self._text_is_answer = text_is_answer
        self._seen: dict[str, list[Passage]] = {}  # passages of earlier steps, by id
        self._began = False
        self._shown = 0

    def begin(self) -> AddableDict:
        """Return the first piece: the input."""
        return AddableDict(self._given)

    def retrieved(self, step: Retrieved) -> Iterator[AddableDict]:
        """Yield the documents of a step that no earlier step has found."""
        found = passages_of(step.hits)
        new = [one for one in found if one not in self._seen.get(one.id, ())]
        for passage in new:
            self._seen.setdefault(passage.id, []).append(passage)
        first, self._began = not self._began, True
        if new or first:
            documents = [document_of(one) for one in new if isinstance(one, HostPassage)]
            yield AddableDict(context=documents)

    def settled(self, text: str) -> Iterator[AddableDict]:
        """Yield the new part of the text, if the answer is the text."""
        if self._text_is_answer and len(text) > self._shown:
            piece = text[self._shown :]
            self._shown = len(text)
            yield AddableDict(answer=piece)

    def end(self, answer: Answer, made: Any) -> Iterator[AddableDict]:
        """Yield what is still missing; `made` is an answer that is not the text."""
        if not self._began:
            yield AddableDict(context=[])
        if not self._text_is_answer:
            yield AddableDict(answer=made)
        elif not self._shown:
            yield AddableDict(answer="")
        if self._report:
            yield AddableDict({REPORT: report_of(answer)})


def whole(pieces: Iterable[AddableDict], output: Output) -> Any:
    """Return the sum of the pieces: the reply, or only its answer."""
    reply = AddableDict()
    for piece in pieces:
        reply = reply + piece
    return dict(reply) if output == "reply" else reply["answer"]


def given_out(pieces: Iterable[AddableDict], output: Output) -> Iterator[Any]:
    """Yield the pieces of the reply, or only those of its answer."""
    for piece in pieces:
        if output == "reply":
            yield piece
        elif "answer" in piece:
            yield piece["answer"]
