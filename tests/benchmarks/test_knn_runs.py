"""Measured, counted and simulated runs of KNN-LM: all ways in turn, and equal to the plain one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")


from benchmarks.knn.inputs import WIKIPEDIA, Artefacts, Prompt, beginning, prepare
from benchmarks.knn.measure import (
    SIZES,
    Cell,
    OfK,
    Remembered,
    RememberingModel,
    measure,
    profile,
    remembered_search,
    request_of,
    workload_of,
)
from benchmarks.knn.run import estimated_s
from benchmarks.knn.simulate import (
    REGIMES,
    VirtualRuns,
    perplexities,
    rates,
    recalls,
    simulate,
    virtual_latencies,
)
from benchmarks.knn.ways import CONTINUOUS, FIXED, Way, caches, simulated_ways
from ralmspec_plugins.diagnosis import UnequalError
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.build import build_datastore
from ralmspec_plugins.knn.search import ExactSearch, Neighbours
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Query
from tests.benchmarks.knn_world import COURSE, MODEL, domains, prompts

TOKENS = 6
ENTRIES = 1_000  # more than there are: all documents
WEIGHT = 0.25


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """A model, trained a little, and its datastore."""
    folder = tmp_path_factory.mktemp("knn") / "made"
    return prepare(MODEL, domains(), folder, entries=ENTRIES, course=COURSE)


@pytest.fixture(scope="module")
def search(made: Artefacts) -> ExactSearch:
    """An exact search."""
    return ExactSearch(made.datastore, k=64)


@pytest.fixture
def runs(made: Artefacts, search: ExactSearch) -> VirtualRuns:
    """Prompts to be continued in virtual time."""
    return VirtualRuns(
        model=RememberingModel(made.model()),
        remembered=Remembered(search),
        prompts=prompts(),
        weight=WEIGHT,
        tokens=TOKENS,
        replica=Remembered(ExactSearch(made.datastore, k=2)),
    )


class CountingModel:
    """A model that counts what is asked of it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.fed: Counter[tuple[int, ...]] = Counter()

    def begin(self, request: Any) -> Any:
        return self._model.begin(request)

    def feed(self, state: Any, token: int, progress: Progress) -> Any:
        self.fed[(*state.draft.prompt_tokens, *state.tokens, token)] += 1
        return self._model.feed(state, token, progress)

    def release(self, state: Any) -> None:
        self._model.release(state)


class LyingSearch(OfK):
    """Gives other distances for a query that is not alone in its batch."""

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        found = super().search_wide(queries, width)
        if len(queries) == 1:
            return found
        return [replace(near, distances=near.distances + 1.0) for near in found]


class ForgetfulSearch(OfK):
    """Finds the second nearest, third nearest, and so on, instead of the nearest ones."""

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        return [near[1:] for near in self.search_wide(queries, self.k + 1)]


def cell(**chosen: Any) -> Cell:
    """A cell of a moment."""
    ways = (FIXED[2], CONTINUOUS)
    settings = {"model": MODEL, "search": "exact", "k": 4, "tokens": TOKENS, "repetitions": 2}
    return Cell(**{**settings, "ways": ways, **chosen})


def test_all_ways_take_turns(made: Artefacts, search: ExactSearch) -> None:
    """Plain, A, B for each prompt, and all of it again; the warm-up is left out."""
    seen: list[Any] = []
    found = measure(cell(), made.model(), OfK(search, 4), prompts(), seen.append)

    turns = [(repetition, number) for repetition in range(2) for number in range(2)]
    assert [(*turn, arm) for turn in turns for arm in ("plain", "fixed 4", "continuous")] == [
        (row["repetition"], row["request"], row["arm"]) for row in found["rows"]
    ]
    assert [row["place"] for row in found["rows"][::3]] == ["in domain", "out of domain"] * 2
    assert found["rows"] == seen
    assert {row["steps"] for row in found["rows"]} == {TOKENS}


def test_a_search_that_depends_on_its_batch_is_found_out(
    made: Artefacts, search: ExactSearch
) -> None:
    """The tokens may be equal, but the record is not, and the run fails."""
    with pytest.raises(UnequalError):
        measure(cell(), made.model(), LyingSearch(search, 4), prompts())


def test_other_tokens_are_told(made: Artefacts, search: ExactSearch) -> None:
    """A model that goes its own way behind a guess is found out by its tokens."""

    class Straying(CountingModel):
        def feed(self, state: Any, token: int, progress: Progress) -> Any:
            fed = super().feed(state, token, progress)
            if max(self.fed.values()) == 1 or fed.log_probs is None:
                return fed
            certain = np.full_like(fed.log_probs, -50.0)
            certain[7] = 0.0
            return replace(fed, log_probs=certain)

    with pytest.raises(UnequalError, match="tokens differ"):
        measure(cell(), Straying(made.model()), OfK(search, 4), prompts())


def test_what_is_prepared_is_opened_again(made: Artefacts) -> None:
    """The second time nothing is trained or built, and all is the same."""
    stages: list[str] = []
    again = prepare(
        MODEL,
        domains(),
        made.folder,
        entries=ENTRIES,
        course=COURSE,
        watch=lambda stage, _: stages.append(stage),
    )

    assert stages == []
    assert (made.datastore.signature, made.ends) == (again.datastore.signature, again.ends)
    assert made.facts == again.facts
    assert made.facts["training"]["tokens"] == 4 * 2 * 16


def test_a_domains_part_is_its_own_datastore(made: Artefacts, tmp_path: Path) -> None:
    """The entries of one domain are what its documents alone make."""
    names = [domain.name for domain in domains()]
    alone = [
        build_datastore(
            domain.documents,
            tmp_path / f"{at}",
            made.loaded.model,
            made.loaded.tokenizer,
            context=COURSE.window,
            stride=3 * COURSE.window // 4,
        )
        for at, domain in enumerate(domains())
    ]
    parts = [made.part(name) for name in names]

    assert [list(one.values) for one in alone] == [list(part.values) for part in parts]
    assert [list(one.document_ends) for one in alone] == [
        list(part.document_ends) for part in parts
    ]
    assert all(
        np.allclose(one.keys, part.keys, atol=1e-2) for one, part in zip(alone, parts, strict=True)
    )


def test_an_unknown_domain_is_refused(made: Artefacts) -> None:
    """The message names those that there are."""
    with pytest.raises(ConfigError, match="known are Wikipedia, Python's documentation"):
        made.part("poems")


def test_fewer_entries_take_whole_documents_of_both(made: Artefacts, tmp_path: Path) -> None:
    """Each domain gives its share; a document is never cut."""
    fewer = prepare(MODEL, domains(), tmp_path / "few", entries=400, course=COURSE)

    sizes = [np.diff([0, *store.datastore.document_ends]).tolist() for store in (fewer, made)]
    assert 400 <= len(fewer.datastore) < len(made.datastore)
    assert set(sizes[0]) <= set(sizes[1])
    assert list(fewer.ends) == list(made.ends)


def test_another_size_is_refused(made: Artefacts) -> None:
    """What is there has as many entries as it has; it is not silently taken for another."""
    with pytest.raises(ConfigError, match="were wanted"):
        prepare(MODEL, domains(), made.folder, entries=500, course=COURSE)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    """Rather than a datastore of half the size that was asked for."""
    with pytest.raises(InputError, match="entries are wanted"):
        prepare(MODEL, domains(), tmp_path, entries=10_000, course=COURSE)


def test_a_remembering_model_reads_each_text_once(made: Artefacts, search: ExactSearch) -> None:
    """However often it is asked, in whatever way; and the text is the model's own."""
    counting = CountingModel(made.model())
    model = RememberingModel(counting)
    request = request_of(prompts()[0], TOKENS)
    expected = plain(workload_of(made.model(), WEIGHT), OfK(search, 4), request)

    answers = [plain(workload_of(model, WEIGHT), OfK(search, 4), request) for _ in range(3)]

    assert [answer.state.tokens for answer in answers] == [expected.state.tokens] * 3
    assert answers[2] == expected
    assert set(counting.fed.values()) == {1}


def test_what_another_weight_chose_is_not_remembered(made: Artefacts, search: ExactSearch) -> None:
    """A remembered state's choice is made anew: the neighbours may have another share."""
    model = RememberingModel(made.model())
    request = request_of(prompts()[0], TOKENS)
    found = remembered_search(Remembered(search), 64)

    tokens = {
        weight: plain(workload_of(model, weight), found, request).state.tokens
        for weight in (1e-6, 1.0)
    }

    assert len(set(tokens.values())) == 2
    for weight, wrote in tokens.items():
        fresh = plain(workload_of(made.model(), weight), OfK(search, 64), request)
        assert fresh.state.tokens == wrote


def test_remembered_neighbours_are_the_real_ones(made: Artefacts, search: ExactSearch) -> None:
    """The first k of the widest search, in one search for those that are missing."""
    batches: list[int] = []

    class Counted(OfK):
        def search(self, queries: Sequence[Query]) -> list[Neighbours]:
            batches.append(len(queries))
            return super().search(queries)

    remembered = Remembered(Counted(search, 16))
    few, more = (remembered_search(remembered, k) for k in (2, 16))
    keys = made.datastore.keys[:4].astype(np.float32)
    queries = [Query("", key, key=key.tobytes()) for key in keys]

    found = [few.search(queries[:2]), few.search(queries), more.search(queries)]

    assert batches == [2, 2]
    expected = [OfK(search, k).search(queries) for k in (2, 16)]
    assert found == [expected[0][:2], expected[0], expected[1]]


def test_guesses_are_counted(runs: VirtualRuns) -> None:
    """In each combination, by place and together; with stride 1 there is nothing to guess."""
    rows = rates(runs, (1, 4), schedules=(FIXED[0], FIXED[2], CONTINUOUS), following=(1, 10))

    assert len(rows) == 2 * 3 * 2 * 3
    places = ["in domain", "out of domain", "all"]
    assert [row["place"] for row in rows[:3]] == places
    assert {row["tokens"] for row in rows if row["place"] == "all"} == {2 * TOKENS}
    together = [
        (rows[at]["guesses"] + rows[at + 1]["guesses"], rows[at + 2]["guesses"])
        for at in range(0, len(rows), 3)
    ]
    assert all(parts == whole for parts, whole in together)
    assert all(0 <= row["rate"] <= 1 for row in rows if row["rate"] is not None)
    assert any(row["guesses"] for row in rows if row["schedule"] == "fixed 4")


def test_a_text_that_goes_on_is_guessed_further_ahead(runs: VirtualRuns) -> None:
    """Where a document is copied, its next ten entries tell more tokens than its next one."""
    start = Prompt(beginning(domains()[0].documents[0], 12), WIKIPEDIA)
    copying = replace(runs, prompts=(start,), weight=1.0, tokens=24)

    rows = rates(copying, (1,), schedules=FIXED[3:], following=(1, 10))

    one, ten = (row for row in rows if row["place"] == "all")
    assert one["rate"] < ten["rate"]


def test_simulated_ways_stay_below_the_bound(runs: VirtualRuns) -> None:
    """N a + b(1) is the least; a stride of one gains nothing."""
    rows = simulate(runs, (4,), regimes=REGIMES[:1])

    assert {row["way"] for row in rows} == {way.name for way in simulated_ways(4)}
    with_cache = [row for row in rows if not row["way"].endswith("replica")]
    assert all(row["speed_up"] <= row["bound"] + 1e-9 for row in with_cache)
    plainly = TOKENS * (1 + 10.0)
    assert rows[0]["bound"] == pytest.approx(plainly / (TOKENS + 10.0))
    assert {round(row["speed_up"], 9) for row in rows if row["way"] == "fixed 1"} == {1.0}


def test_no_wider_search_is_simulated_where_it_is_approximate(runs: VirtualRuns) -> None:
    """A wider approximate search may begin with other neighbours, so there is none."""
    rows = simulate(runs, (4,), regimes=[one for one in REGIMES if one.search != "exact"][:1])

    wide = [way.name for way in caches(4) if way.width is not None]
    assert wide
    assert not {row["way"] for row in rows} & set(wide)


def test_virtual_time_is_the_latencies(runs: VirtualRuns) -> None:
    """Hand-worked: a token takes 1 and a search of one 10, so six tokens take 66 plainly."""
    answers = runs.plain(4, virtual_latencies(10.0, 0.975))

    assert [answer.stats.wall_s for answer in answers] == [66.0] * 2
    assert virtual_latencies(10.0, 0.975).search_s(5) == pytest.approx(11.0)


def test_perplexities_are_taken_with_each_domain(made: Artefacts) -> None:
    """The model alone foretells the same with any; a text that is in one is foretold with it."""
    asked = replace(domains()[0], held_out=domains()[0].documents[:1])
    rows = perplexities(made, asked, 12, k=8)

    assert [(row["datastore"], row["in_domain"]) for row in rows[::2]] == [
        (name, name == asked.name) for name in made.ends
    ]
    assert len({row["alone"] for row in rows}) == 1
    assert list(rows[0]["with"]) == ["0.1", "0.25", "0.5"]
    inside, outside = (
        next(row for row in rows if row["in_domain"] is kind)["with"]["0.5"]
        for kind in (True, False)
    )
    assert inside < outside / 2


def test_the_parts_of_a_token_are_timed(made: Artefacts, search: ExactSearch) -> None:
    """Each is a positive number of microseconds, over all tokens of the texts."""
    found = profile(made.model(), OfK(search, 4), prompts(), weight=WEIGHT, tokens=TOKENS)

    assert found["tokens"] == 2 * TOKENS
    assert set(found["parts_us"]) == {"pass", "choosing", "guessing"}
    assert set(found["loop_us"]) == {"plain", "knowing all", "guessing"}
    assert list(found["search_us"]) == [str(size) for size in SIZES]
    times = [*found["parts_us"].values(), *found["loop_us"].values(), *found["search_us"].values()]
    assert all(time_us > 0 for time_us in times)


def test_a_cell_is_estimated(made: Artefacts, search: ExactSearch) -> None:
    """More repetitions take longer in proportion, the warm-up aside."""
    model, asked = made.model(), prompts()
    once = estimated_s(cell(), model, OfK(search, 4), asked[0], 2)

    assert once > 0


def test_ways_have_their_own_names() -> None:
    """For every k; tables tell them apart by name."""
    for k in (1, 8, 64, 256, 1024):
        names = [way.name for way in simulated_ways(k)]
        assert len(set(names)) == len(names)


def test_a_ways_cache_is_as_it_says(made: Artefacts) -> None:
    """Each request has a cache of its own, with this way's settings; a search brings its width."""
    way = Way(name="w", following=3, followed=2, capacity=50, width=20)
    settings = way.settings(made.datastore, 4)
    assert callable(settings.speculators)
    (one,), (other,) = settings.speculators(), settings.speculators()

    assert (one.k, one.following, one.followed, one.capacity) == (4, 3, 2, 50)
    assert one is not other
    assert settings.width(4) == 20


def test_recall_is_the_share_of_true_neighbours(runs: VirtualRuns, search: ExactSearch) -> None:
    """The exact search finds all of them; one that misses each nearest one of four, three."""
    asked = {"all": OfK(search, 4), "but one": ForgetfulSearch(search, 4)}
    rows = recalls(runs, 4, asked)

    assert {("all", 1.0, 1.0), ("but one", 0.75, 0.0)} == {
        (row["search"], row["recall"], row["all_found"]) for row in rows
    }
    places = [prompt.place for prompt in prompts()]
    assert {row["place"]: row["queries"] for row in rows if row["search"] == "all"} == {
        **{place: TOKENS * count for place, count in Counter(places).items()},
        "all": TOKENS * len(places),
    }
