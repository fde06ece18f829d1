"""A host's prompt as the template of a directly driven model: split where passages stand."""

from collections.abc import Callable, Sequence
from typing import Final

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.types import Passage, Request

UNCUT: Final = 2**31  # tokens of a passage that are shown: hosts show them whole
_PLACE: Final = "[[ralmspec:passages]]"  # stands for them while the prompt is filled in


def split_template(
    prompt: Callable[[Request, str], str],
    context: Callable[[Sequence[Passage]], str],
    *,
    separator: str,
    together: bool,
    variable: str,
) -> PassageTemplate:
    """Make a template that shows what the host's own prompt would.

    Args:
        prompt: fills in the host's prompt: for a request, with this context.
        context: shows passages as the host would.
        separator: what `context` puts between two of them.
        together: whether passages are shown as one text, which cannot be told apart.
        variable: the context's name in the prompt, for the message.
    """

    def frame(request: Request) -> tuple[str, str]:
        text = prompt(request, _PLACE)
        if text.count(_PLACE) != 1:
            raise ConfigError(
                f"direct=True needs a prompt that shows {{{variable}}} once, as it is; "
                f"this one shows it {text.count(_PLACE)} times: {text!r:.200}"
            )
        front, _, behind = text.partition(_PLACE)
        return front, behind

    def arrange(passages: Sequence[Passage]) -> Sequence[str]:
        if together:  # the first one stands for all
            return [context(passages), *[""] * (len(passages) - 1)] if passages else []
        shown = [context([passage]) for passage in passages]
        return [text + separator for text in shown[:-1]] + shown[-1:]

    return PassageTemplate(frame=frame, arrange=arrange)
