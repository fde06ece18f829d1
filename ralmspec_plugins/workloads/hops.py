"""Formats in which a model requests passages in its text, and in which they are inserted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.text import sentence_end
from ralmspec_plugins.types import Passage


@dataclass(frozen=True, slots=True)
class Turn:
    """The text of a model up to its next query, or up to its end."""

    text: str  # the final text of the turn, including a closing tag that ended it
    query: str | None  # "": continue without a search; `None`: the answer is complete


class HopFormat(Protocol):
    """A format in which a model requests passages, and in which they are inserted.

    `stop`: strings at which the model stops writing.
    `by_sentence`: whether a turn is one sentence, instead of all text up to a stop string.
    `asks_first`: whether the question is searched before anything is written.
    `in_front`: whether the passages of all hops precede the prompt, as in one-shot RAG;
    otherwise the passages of each hop are inserted into the text after the query.
    """

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which the model stops writing."""
        ...

    @property
    def by_sentence(self) -> bool:
        """Whether a turn is one sentence."""
        ...

    @property
    def asks_first(self) -> bool:
        """Whether the question is searched before anything is written."""
        ...

    @property
    def in_front(self) -> bool:
        """Whether the passages of all hops precede the prompt."""
        ...

    def read(self, text: str, stopped_by: str | None, *, finished: bool) -> Turn:
        """Return the text of a turn, and the query at its end.

        Args:
            text: the text of the turn, without the stop string.
            stopped_by: the stop string that ended it, which may be one of the request's; "" if
                it ended otherwise; `None` if the model's interface does not report it.
            finished: whether the model cannot continue: at its end, a stop string, or the
                maximum length.
        """
        ...

    def block(self, passages: Sequence[Passage]) -> str:
        """Return the text to insert for the passages of a hop."""
        ...

    def answer(self, text: str) -> str | None:
        """Return the final answer in the whole text, or `None` if there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTags:
    """Search-R1's tags: `<search>`, answered by passages between `<information>` tags.

    Jin et al. 2025 (arXiv 2503.09516), section 3.2 and table 1. A query is the text between
    the first `<search>` of a turn and the `</search>` that ends it. As in the reference code, an
    empty query, and a `</search>` without `<search>`, get an empty block and count as a hop; a
    turn that ends without a closing tag ends the answer. If the model's interface does not
    report what stopped it, the tag that was opened last counts as closed.

    >>> SearchTags().read("First, <search> who built it", "</search>", finished=True)
    Turn(text='First, <search> who built it</search>', query='who built it')
    """

    search: str = "search"
    answer_tag: str = "answer"
    information: str = "information"

    by_sentence = False
    asks_first = False
    in_front = False

    def __post_init__(self) -> None:
        """Check the names of the tags.

        Raises:
            ConfigError: a name is empty, or two are the same.
        """
        names = (self.search, self.answer_tag, self.information)
        if not all(names) or len(set(names)) < len(names):
            raise ConfigError(f"the names of tags must be different and not empty, got {names}")

    @property
    def stop(self) -> tuple[str, ...]:
        """The closing tags of a query and of the answer."""
        return _closing(self.search), _closing(self.answer_tag)

    def read(self, text: str, stopped_by: str | None, *, finished: bool) -> Turn:
        """Return the query between the tags."""
        if stopped_by is None:
            stopped_by = self._left_open(text)
        if stopped_by == _closing(self.search):
            _, opened, query = text.partition(_opening(self.search))
            return Turn(text + stopped_by, query.strip() if opened else "")
        if stopped_by == _closing(self.answer_tag):
            return Turn(text + stopped_by, None)
        return Turn(text, None)

    def _left_open(self, text: str) -> str:
        """Return the closing tag of the tag opened last, or ""."""
        opened = {text.rfind(_opening(name)): name for name in (self.search, self.answer_tag)}
        last = max(opened)
        return _closing(opened[last]) if last >= 0 else ""

    def block(self, passages: Sequence[Passage]) -> str:
        """Return the passages between tags, each with its number and title."""
        shown = "".join(
            f"Doc {number}(Title: {one.title}) {one.text}\n"
            for number, one in enumerate(passages, start=1)
        )
        inside = f"{_opening(self.information)}{shown.strip()}{_closing(self.information)}"
        return f"\n\n{inside}\n\n"

    def answer(self, text: str) -> str | None:
        """Return the text after the last opening tag of an answer."""
        _, opened, behind = text.rpartition(_opening(self.answer_tag))
        return behind.partition(_closing(self.answer_tag))[0].strip() if opened else None


def _opening(name: str) -> str:
    return f"<{name}>"


def _closing(name: str) -> str:
    return f"</{name}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoughts:
    """IRCoT's interleaving: each sentence of a chain of thought is the next query.

    Trivedi et al. 2023 (arXiv 2212.10509), section 3: the question is searched first; the
    passages of all hops are collected before the prompt, in the order in which they were
    found, each once; a thought that contains `end` is the last one.

    >>> Thoughts().read(" Mo was born in Bex. Mo", "", finished=False)
    Turn(text=' Mo was born in Bex.', query='Mo was born in Bex.')
    """

    end: str = "answer is:"

    stop = ()
    by_sentence = True
    asks_first = True
    in_front = True

    def read(self, text: str, stopped_by: str | None, *, finished: bool) -> Turn:
        """Return the first sentence, which is also the query unless it is the last one."""
        end = sentence_end(text, 0)
        thought = text if end is None else text[:end]
        over = finished and end is None
        return Turn(thought, None if over or self.end in thought else thought.strip())

    def block(self, passages: Sequence[Passage]) -> str:
        """Return "": the passages precede the prompt."""
        return ""

    def answer(self, text: str) -> str | None:
        """Return the text after the words that announce the answer."""
        _, announced, behind = text.rpartition(self.end)
        return behind.strip().removesuffix(".") if announced else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUps:
    r"""Self-Ask's questions: "Follow up: ...", answered by passages and "Intermediate answer:".

    Press et al. 2023 (arXiv 2210.03350), section 3, with a retriever instead of a search
    engine that returns answers: the passages are inserted as "Context1: ...", and the model
    writes the intermediate answer. Its stop strings are those of FlashRAG. The query of a turn is
    the text after its last "Follow up:". A turn without one, with `end` after it, or ended by
    a stop string of the request, is the last.

    >>> FollowUps().read("Follow up: Who built it?\n", "Intermediate answer:", finished=True)
    Turn(text='Follow up: Who built it?\n', query='Who built it?')
    """

    follow_up: str = "Follow up:"
    intermediate: str = "Intermediate answer:"
    end: str = "So the final answer is:"

    by_sentence = False
    asks_first = False
    in_front = False

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which passages are inserted, or another example would begin."""
        return "Context:", "#", self.intermediate

    def read(self, text: str, stopped_by: str | None, *, finished: bool) -> Turn:
        """Return the follow-up question."""
        _, asks, behind = text.rpartition(self.follow_up)
        if not asks or self.end in behind or (stopped_by and stopped_by not in self.stop):
            return Turn(text, None)
        return Turn(text, behind.strip())

    def block(self, passages: Sequence[Passage]) -> str:
        """Return the passages, a line each, and the beginning of the intermediate answer."""
        lines = [f"Context{number}: {_line(one)}" for number, one in enumerate(passages, start=1)]
        return "\n".join(["", *lines, self.intermediate])

    def answer(self, text: str) -> str | None:
        """Return the text after the words that announce the answer."""
        _, announced, behind = text.rpartition(self.end)
        return behind.strip().removesuffix(".") if announced else None


def _line(passage: Passage) -> str:
    return " ".join(f"{passage.title} {passage.text}".split())
