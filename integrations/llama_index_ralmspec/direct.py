"""Drives the Hugging Face model inside of a host's wrapper by tokens and key-value cache."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.direct_nodes import ProcessedLM
from llama_index_ralmspec.models import hugging_face
from llama_index_ralmspec.passages import node_of
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.prompting import Prompting
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts.sampling import sampling
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.records import Passage, Request

if TYPE_CHECKING:
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM

_PLACE = "[[ralmspec:nodes]]"  # stands for the nodes while the prompt is filled in
_UNCUT = 2**31  # the host's own synthesizers show nodes whole, if they show them at all


def direct_lm(
    llm: LLM,
    prompting: Prompting | None = None,
    postprocessors: Sequence[BaseNodePostprocessor] = (),
    *,
    cache_bytes: int | None = None,
) -> "HuggingFaceLM | ProcessedLM":
    """Make a model that writes by tokens of the one in a `HuggingFaceLLM`.

    The prompt is the host's, with its system prompt, its wrappers and its chat template,
    split at the place of the nodes; tokens are chosen by the wrapper's own settings. What
    is right is then the plain loop over this model: a loop over the host's wrapper turns
    text into tokens anew at each step, which may split it in other ways, and it draws
    other random numbers where it samples.

    Raises:
        ConfigError: it is no `HuggingFaceLLM`, or it has settings that cannot be kept to;
            the message names them.
    """
    if not hugging_face(llm):
        raise ConfigError(
            f"direct=True needs a HuggingFaceLLM, got {type(llm).__name__}; "
            "without it the host's own calls are used"
        )
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM

    wrapper: Any = llm
    parts = Prompting() if prompting is None else prompting
    options: dict[str, Any] = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
    made = HuggingFaceLM(
        wrapper._model,  # noqa: SLF001 there is no public way
        wrapper._tokenizer,  # noqa: SLF001 as above
        sampling=sampling_of(wrapper),
        template=PassageTemplate(frame=_frame(parts, wrapper), arrange=_arrange(parts)),
        passage_tokens=_UNCUT,
        **options,
    )
    return ProcessedLM(made, Postprocessing(postprocessors)) if postprocessors else made


def sampling_of(llm: Any) -> Greedy | Sampling:
    """Read how a `HuggingFaceLLM` chooses tokens.

    Raises:
        ConfigError: it has settings that cannot be kept to.
    """
    eos = llm._model.generation_config.eos_token_id  # noqa: SLF001 there is no public way
    ends = {*eos} if isinstance(eos, list | tuple) else {eos}
    unfit = []
    if not set(llm.stopping_ids) <= ends:
        unfit.append("stopping_ids (set them as eos_token_id of the model's generation_config)")
    if llm.output_parser is not None:
        unfit.append("output_parser (a text that is written step by step cannot be parsed)")
    return sampling(_settings(llm), eos, "the HuggingFaceLLM", unfit=unfit)


def _settings(llm: Any) -> Mapping[str, Any]:
    """Lay together what `generate` would: the model's own settings, and those of the call."""
    given = dict(llm.generate_kwargs)
    settings: dict[str, Any] = {}
    for config in (llm._model.generation_config, given.pop("generation_config", None)):  # noqa: SLF001
        if config is not None:
            settings.update(config.to_diff_dict())
    return {**settings, **given}


def _frame(prompting: Prompting, llm: Any) -> Callable[[Request], tuple[str, str]]:
    def frame(request: Request) -> tuple[str, str]:
        text = prompting.shown(llm, request.prompt, _PLACE)
        if text.count(_PLACE) != 1:
            raise ConfigError(
                "direct=True needs a prompt that shows {context_str} once, as it is; "
                f"this one shows it {text.count(_PLACE)} times: {text!r:.200}"
            )
        front, _, behind = text.partition(_PLACE)
        return front, behind

    return frame


def _arrange(prompting: Prompting) -> Callable[[Sequence[Passage]], Sequence[str]]:
    def arrange(passages: Sequence[Passage]) -> Sequence[str]:
        nodes = [NodeWithScore(node=node_of(passage)) for passage in passages]
        if prompting.format_nodes is not None:  # one text for all: the first one stands for it
            return [prompting.context(nodes), *[""] * (len(nodes) - 1)] if nodes else []
        shown = [prompting.context([node]) for node in nodes]
        return [text + prompting.separator for text in shown[:-1]] + shown[-1:]

    return arrange
