"""What a datastore says about itself, and whether a model fits it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ralmspec_plugins.errors import InputError, ModelError

KeyKind: TypeAlias = Literal["ffn_input", "output"]
KEY_KINDS: tuple[KeyKind, ...] = get_args(KeyKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreInfo:
    """The facts in a datastore's `about.json`; an empty text means that it is not known."""

    dimension: int  # of a key
    vocabulary: int  # values are below this
    entries: int
    documents: int  # those with at least one entry
    key_kind: KeyKind = "ffn_input"
    tokenizer: str = ""  # fingerprint
    model: str = ""  # fingerprint
    model_name: str = ""
    context: int = 0  # tokens that a window of the building pass held
    stride: int = 0  # tokens that each window went on by
    bos: bool = False  # whether each document began with the tokenizer's BOS token
    eos: bool = False  # whether each document ended with the tokenizer's EOS token
    source: str = ""  # where the texts came from, in words

    def __post_init__(self) -> None:
        """Refuse what no datastore can be.

        Raises:
            InputError: a number is out of range, or the kind of keys is unknown.
        """
        for name in ("dimension", "vocabulary", "entries", "documents"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {number!r}")
        if self.key_kind not in KEY_KINDS:
            raise InputError(f"key_kind must be one of {', '.join(KEY_KINDS)}: {self.key_kind!r}")

    def check_fits(
        self,
        *,
        dimension: int,
        vocabulary: int,
        key_kind: str,
        tokenizer: str = "",
        model: str = "",
    ) -> None:
        """Refuse a model whose hidden states or tokens mean something else than those in here.

        A fingerprint that is empty, here or there, is not compared: give no
        `model` to use another precision or a fine-tuned descendant on purpose.

        Args:
            dimension: of the model's keys.
            vocabulary: how many tokens the model gives a probability to.
            key_kind: which hidden state is asked with.
            tokenizer: `tokenizer_fingerprint(...)`.
            model: `model_fingerprint(...)`.

        Raises:
            ModelError: it does not fit; the message names every field that differs.
        """
        problems = [
            f"{name} is {got!r} and must be {expected!r}"
            for name, got, expected in (
                ("the dimension of the model's keys", dimension, self.dimension),
                ("the model's vocabulary", vocabulary, self.vocabulary),
                ("the kind of keys", key_kind, self.key_kind),
            )
            if got != expected
        ]
        problems += [
            f"the {name}'s fingerprint is {got} and must be {expected}"
            for name, got, expected in (
                ("tokenizer", tokenizer, self.tokenizer),
                ("model", model, self.model),
            )
            if got and expected and got != expected
        ]
        if problems:
            made_with = f" ({self.model_name})" if self.model_name else ""
            raise ModelError(
                f"The datastore does not fit: {'; '.join(problems)}. Use the model and tokenizer "
                f"that it was built with{made_with}, or build one with yours: ralmspec knn build"
            )
