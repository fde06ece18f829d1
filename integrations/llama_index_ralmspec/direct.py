"""Drives the Hugging Face model inside of a host's wrapper by tokens and key-value cache."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.direct_nodes import ProcessedLM
from llama_index_ralmspec.models import hugging_face
from llama_index_ralmspec.passages import node_of
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.prompting import Prompting
from ralmspec_plugins.adapters.local_model import UNCUT, sampling, split_template
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.types import Passage

if TYPE_CHECKING:
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM


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
    options: dict[str, Any] = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
    made = HuggingFaceLM(
        wrapper._model,  # noqa: SLF001 there is no public way
        wrapper._tokenizer,  # noqa: SLF001 as above
        sampling=sampling_of(wrapper),
        template=_template(Prompting() if prompting is None else prompting, llm),
        passage_tokens=UNCUT,
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


def _template(prompting: Prompting, llm: LLM) -> PassageTemplate:
    def context(passages: Sequence[Passage]) -> str:
        return prompting.context([NodeWithScore(node=node_of(passage)) for passage in passages])

    return split_template(
        lambda request, shown: prompting.shown(llm, request.prompt, shown),
        context,
        separator=prompting.separator,
        together=prompting.format_nodes is not None,
        variable="context_str",
    )
