"""A `KNNLanguageModel` as a host's model: what it is known by, and what a text of it took."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts.classes import qualified_name
from ralmspec_plugins.hosts.reports import REPORT, Report, report_of
from ralmspec_plugins.hosts.text_draft import Usage
from ralmspec_plugins.types import Answer

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel


def check_model(lm: object) -> None:
    """Refuse what is no `KNNLanguageModel`.

    Raises:
        ConfigError: it is something else.
    """
    from ralmspec_plugins.knn import KNNLanguageModel  # who has one has torch

    if not isinstance(lm, KNNLanguageModel):
        raise ConfigError(
            f"lm must be a KNNLanguageModel, got {qualified_name(type(lm))}; make one: "
            "KNNLanguageModel.from_pretrained(model, datastore)"
        )


def model_name(lm: "KNNLanguageModel") -> str:
    """Give the name that the model was loaded by, or its kind for one that was made in memory."""
    config = lm.model.model.config
    return str(config.name_or_path or config.model_type)


def known_by(lm: "KNNLanguageModel") -> dict[str, Any]:
    """Name all that a text depends on besides its request: hosts make keys of caches of it.

    How it speculates is not in it, since that changes no text. This reads some of each
    weight, which takes up to a second: keep it.
    """
    from ralmspec_plugins.knn.model import model_fingerprint

    network = lm.model.model
    return {
        "model_name": model_name(lm),
        "model": model_fingerprint(network),
        "precision": str(network.dtype).removeprefix("torch."),
        "search": str(lm.retriever.signature),  # names the datastore and k, too
        "weight": lm.mixing.weight,
        "distance_temperature": lm.mixing.temperature,
    }


def taken_by(answer: Answer) -> dict[str, Any]:
    """Say why a text ended ("length", or "stop" for its own end too), and report what it took.

    The report has no queries: hidden states cannot be read.
    """
    draft = answer.state.draft
    read, written = len(draft.prompt_tokens), len(draft.tokens)
    usage = asdict(Usage(read, written, read + written))
    report = Report(stats=report_of(answer)["stats"], queries=[], usage=usage)
    return {"finish_reason": "length" if draft.ending == "length" else "stop", REPORT: report}
