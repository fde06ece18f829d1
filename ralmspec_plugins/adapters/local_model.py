"""A host's prompt as the template of a local model, split at its passages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ralmspec_plugins.adapters.events import REPORT, Report, report_of
from ralmspec_plugins.adapters.fingerprint import qualified_name
from ralmspec_plugins.adapters.text_state import Usage
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.types import Answer, Passage, Request

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel

UNCUT: Final = 2**31  # maximum number of tokens of a passage: hosts do not truncate
_PLACE: Final = (
    "[[ralmspec:passages]]"  # placeholder for the passages while the prompt is formatted
)


def split_template(
    prompt: Callable[[Request, str], str],
    context: Callable[[Sequence[Passage]], str],
    *,
    separator: str,
    together: bool,
    variable: str,
) -> PassageTemplate:
    """Return a template with the same text as the host's prompt.

    Args:
        prompt: formats the host's prompt for a request and a context.
        context: formats passages as the host does.
        separator: the text between two passages.
        together: whether passages are formatted as one inseparable text.
        variable: the name of the context in the prompt, for the error message.
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
        if together:  # the first one represents all
            return [context(passages), *[""] * (len(passages) - 1)] if passages else []
        shown = [context([passage]) for passage in passages]
        return [text + separator for text in shown[:-1]] + shown[-1:]

    return PassageTemplate(frame=frame, arrange=arrange)


# The sampling of a local Hugging Face model, by the settings of its wrapper.


# The defaults of `generate`.
_DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
# Settings without effect on one text.
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "min_length": 0,
    "guidance_scale": 1.0,
}
# Settings of the length, which the workload defines, or of computation and reporting.
_NOT_OURS = frozenset(
    {
        *("max_length", "max_new_tokens", "prefix_length", "pad_token_id", "bos_token_id"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len"),
        *("compile_config", "disable_compile", "return_dict_in_generate", "assistant_model"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_full_text", "return_text", "clean_up_tokenization_spaces", "tokenizer"),
        *("skip_special_tokens", "transformers_version", "_from_model_config", "batch_size"),
        *("assistant_tokenizer", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
        *("eos_token_id", "is_assistant", "max_matching_ngram_size", *_DEFAULTS),
    }
)


def sampling(
    settings: Mapping[str, Any], eos: Any, whose: str, *, unfit: Sequence[str] = ()
) -> Greedy | Sampling:
    """Return the sampling parameters for the settings of `generate`.

    Args:
        settings: the model's settings, overridden by those of its wrapper and of the call.
        eos: the end token or tokens of the model.
        whose: the owner of the settings, for the error message.
        unfit: other unsupported settings.

    Raises:
        ConfigError: there are unsupported settings; the message names them.
    """
    named = sorted(
        name
        for name, value in settings.items()
        if name not in _NOT_OURS and value not in (None, False, _NEUTRAL.get(name))
    )
    named += unfit
    if settings.get("eos_token_id", eos) != eos:
        named.append("eos_token_id (set it on the model's generation_config)")
    if named:
        raise ConfigError(
            f"direct=True does not support these settings of {whose}: {', '.join(named)}. "
            "Leave them out, or leave out direct=True"
        )
    values = {
        name: value if settings.get(name) is None else settings[name]
        for name, value in _DEFAULTS.items()
    }
    penalty = float(values["repetition_penalty"])
    if not values["do_sample"]:
        return Greedy(repetition_penalty=penalty)
    return Sampling(
        repetition_penalty=penalty,
        temperature=float(values["temperature"]),
        top_k=int(values["top_k"]),
        top_p=float(values["top_p"]),
    )


# A `KNNLanguageModel` as a host's model: its identifying parameters, and its reports.


def check_model(lm: object) -> None:
    """Check that a model is a `KNNLanguageModel`.

    Raises:
        ConfigError: it is something else.
    """
    from ralmspec_plugins.knn import KNNLanguageModel  # imports torch

    if not isinstance(lm, KNNLanguageModel):
        raise ConfigError(
            f"lm must be a KNNLanguageModel, got {qualified_name(type(lm))}; make one: "
            "KNNLanguageModel.from_pretrained(model, datastore)"
        )


def model_name(lm: "KNNLanguageModel") -> str:
    """Return the name from which the model was loaded, or else its class."""
    config = lm.model.model.config
    return str(config.name_or_path or config.model_type)


def known_by(lm: "KNNLanguageModel") -> dict[str, Any]:
    """Return all that a text depends on besides its request, for the cache keys of hosts.

    Settings of speculation are excluded, since they change no text. This reads a sample of each
    weight, which takes up to a second: keep the result.
    """
    from ralmspec_plugins.lm.fingerprint import model_fingerprint

    network = lm.model.model
    return {
        "model_name": model_name(lm),
        "model": model_fingerprint(network),
        "precision": str(network.dtype).removeprefix("torch."),
        "search": str(lm.retriever.signature),  # includes the datastore and k
        "weight": lm.mixing.weight,
        "distance_temperature": lm.mixing.temperature,
    }


def taken_by(answer: Answer) -> dict[str, Any]:
    """Return the finish reason of a text ("length" or "stop"), and its report.

    The report has no queries: hidden states cannot be read.
    """
    draft = answer.state.draft
    read = len(draft.origin.head_tokens) + len(draft.prompt_tokens)
    written = len(draft.tokens)
    usage = asdict(Usage(read, written, read + written))
    report = Report(**{**report_of(answer), "queries": [], "usage": usage})
    return {"finish_reason": "length" if draft.ending == "length" else "stop", REPORT: report}
