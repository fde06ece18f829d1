"""Templates and tokenisation of passages and prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ralmspec_plugins.errors import ConfigError, InputError, ModelError
from ralmspec_plugins.types import Passage, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ChatPlace = Literal["front", "system", "user"]
Frame = Callable[[Request], tuple[str, str]]
Arrange = Callable[[Sequence[Passage]], Sequence[str]]
_PLACE = "[[ralmspec:passages]]"  # placeholder for the passages while a chat template is applied


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageTemplate:
    """The text around passages and prompt.

    `prompt` is a format string or a function. `chat` applies the tokenizer's
    chat template, with the passages before everything ("front", as in the
    papers), or in the "system" or "user" message. Special tokens in
    a passage are read as plain text: a document cannot end a turn.

    If the text around the passages is defined elsewhere (in a host's prompt),
    `frame` returns the text before and after them, and replaces
    `prompt`, `chat` and `system`; `arrange` returns the text of each passage, and
    replaces `title` and `passage`.
    """

    title: str = "{title}\n"  # as in the paper: title, newline, text; omitted for an empty title
    passage: str = "{text}\n\n"
    prompt: str | Callable[[str], str] = "{prompt}"
    chat: ChatPlace | None = None
    system: str = ""  # the system message, with `chat`
    frame: Frame | None = None
    arrange: Arrange | None = None

    def __post_init__(self) -> None:
        """Check that the templates have all their fields."""
        _check_format("title", self.title, "title")
        _check_format("passage", self.passage, "text")
        if isinstance(self.prompt, str):
            _check_format("prompt", self.prompt, "prompt")
        if self.chat not in (None, *get_args(ChatPlace)):
            raise ConfigError(
                f"chat must be None or one of {get_args(ChatPlace)}, got {self.chat!r}"
            )
        if self.system and self.chat is None:
            raise ConfigError("system is only used with chat='front', 'system' or 'user'")
        if self.frame is not None and self.chat is not None:
            raise ConfigError("frame and chat cannot be used together: a frame is the whole text")

    def show(self, passage: Passage) -> str:
        """Return the text of a passage."""
        if self.arrange is not None:
            return passage.text  # as it was arranged
        title = self.title.format(title=passage.title) if passage.title else ""
        return title + self.passage.format(text=passage.text)

    def arranged(self, passages: Sequence[Passage]) -> Sequence[Passage]:
        """Return the passages with their texts from `arrange`."""
        if self.arrange is None:
            return passages
        shown = self.arrange(passages)
        return [Passage(one.id, text) for one, text in zip(passages, shown, strict=True)]

    def ask(self, prompt: str) -> str:
        """Return the text of a prompt."""
        if isinstance(self.prompt, str):
            return self.prompt.format(prompt=prompt)
        return self.prompt(prompt)


def framed_tokens(
    template: PassageTemplate, tokenizer: "PreTrainedTokenizerBase", request: Request
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokenise the text around a request's passages, by the template's frame if there is one.

    Raises:
        InputError: a text has an incomplete character.
        ModelError: as for `prompt_tokens`.
    """
    check_text(request.prompt)
    if template.frame is None:
        return prompt_tokens(template, tokenizer, request.prompt)
    front, behind = template.frame(request)
    for text in (front, behind):
        check_text(text)
    head = encode(tokenizer, front)
    begins = tuple(tokenizer.encode("", verbose=False))[:1]  # the tokenizer's start of any text
    rest = encode(tokenizer, behind)
    if begins == (tokenizer.bos_token_id,) and head[:1] != begins:
        if not head and rest[:1] == begins:  # a chat template has put it there
            rest = rest[1:]
        head = begins + head
    return head, rest


def prompt_tokens(
    template: PassageTemplate, tokenizer: "PreTrainedTokenizerBase", prompt: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokenise the text before the passages, and the text after them.

    Each part is tokenised separately, so that the passages' tokens, and their
    key-value cache, do not depend on the prompt.

    Raises:
        ModelError: the tokenizer has no chat template, or its template does not
            include the message with the passages.
    """
    bos = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    asked = template.ask(prompt)
    if template.chat is None:
        return bos, encode(tokenizer, asked)
    chat = _chat_text(template, tokenizer, asked)
    if template.chat == "front":
        tokens = encode(tokenizer, chat)
        return bos, tokens[len(bos) :] if bos and tokens[:1] == bos else tokens
    if chat.count(_PLACE) != 1:
        raise ModelError(
            f"The chat template does not include the {template.chat} message unchanged, so the "
            f"passages cannot be part of it. Use chat='front' or another message."
        )
    head, _, tail = chat.partition(_PLACE)
    return encode(tokenizer, head), encode(tokenizer, tail)


def encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, literal: bool = False
) -> tuple[int, ...]:
    """Tokenise a text without adding special tokens; if `literal`, without reading any."""
    ids = tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=literal, verbose=False
    )
    return tuple(ids)


def decode(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    """Return the text of some tokens, without special tokens."""
    text = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def _chat_text(template: PassageTemplate, tokenizer: "PreTrainedTokenizerBase", asked: str) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            f"chat={template.chat!r} needs a tokenizer with a chat template, and this one has none."
        )
    system = template.system + (_PLACE if template.chat == "system" else "")
    user = (_PLACE if template.chat == "user" else "") + asked
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def check_text(text: str) -> None:
    """Check that a text has no incomplete character.

    Raises:
        InputError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt {text!r} is no valid text ({error.reason}); "
            "decode it from its bytes with the right encoding"
        ) from None


def _check_format(name: str, text: str, field: str) -> None:
    try:
        shown = text.format(**{field: "\0"})
    except (KeyError, IndexError, ValueError) as problem:
        raise ConfigError(f"{name} must be a format string with {{{field}}}, got {text!r}") from (
            problem
        )
    if "\0" not in shown:
        raise ConfigError(f"{name} must contain {{{field}}}, got {text!r}")
