"""How well held-out texts are foretold: alone, with neighbours of their kind, with others."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from ralmspec_plugins.bench.knn.artefacts import Artefacts
from ralmspec_plugins.bench.knn.domains import Domain, beginning
from ralmspec_plugins.bench.knn.replaying import Remembered
from ralmspec_plugins.knn.distribution import Floats
from ralmspec_plugins.knn.exact import ExactSearch
from ralmspec_plugins.knn.perplexity import Foretold, foretell

PERPLEXITY_WEIGHTS: Final = (0.1, 0.25, 0.5)
TEMPERATURES: Final = (1.0, 10.0)
_USUAL: Final = 0.25


def perplexities(
    made: Artefacts,
    asked: Domain,
    words: int,
    *,
    k: int = 1024,
    temperatures: Sequence[float] = TEMPERATURES,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Foretell the starts of a domain's held-out texts, with the entries of each domain in turn.

    Args:
        made: the model and the datastore.
        asked: whose held-out texts are foretold.
        words: of each, at most.
        k: how many neighbours vote.
        temperatures: of their distances.
        told: hears of each datastore as it is done.
    """
    model = made.model()
    context = made.datastore.about.context
    texts = [beginning(text, words) for text in asked.held_out]
    rows = []
    for name in made.ends:
        search = Remembered(ExactSearch(made.part(name), k=k))  # once for all temperatures
        for temperature in temperatures:
            foretold = foretell(
                model,
                search,
                texts,
                temperature=temperature,
                block=context,
                stride=max(1, context // 2),
            )
            rows.append(
                {
                    "texts": asked.name,
                    "datastore": name,
                    "in_domain": name == asked.name,
                    "entries": search.inner.size,
                    "k": k,
                    "temperature": temperature,
                    "tokens": foretold.tokens,
                    "documents": foretold.texts,
                    "alone": foretold.model_perplexity,
                    "with": {str(weight): foretold.perplexity(weight) for weight in PERPLEXITY_WEIGHTS},
                    "saved_nats": _saved(foretold, _USUAL),
                }
            )
            told(f"{asked.name} with {name}: {rows[-1]['alone']:.1f}, {rows[-1]['with']}")
    return rows


def _saved(foretold: Foretold, weight: float) -> list[float]:
    """Give how much easier a token is to foretell with neighbours, on average, and the error."""
    own, near = foretold.model, foretold.neighbours
    mixed: Floats = np.logaddexp(own + np.log1p(-weight), near + np.log(weight))
    saved = mixed - own
    return [float(saved.mean()), float(saved.std() / np.sqrt(len(saved)))]
