"""The demo's invented world: the same everywhere, consistent, and its facts can be counted."""

import hashlib
import json
from pathlib import Path

import pytest

from ralmspec_plugins.demo import language
from ralmspec_plugins.demo.world import (
    CHAIN,
    DEMO_SEED,
    World,
    count_facts,
    make_world,
)

MODEL = Path(language.__file__).parent / "model"


@pytest.fixture(scope="module")
def world() -> World:
    """The demo's own world, in its full size."""
    return make_world(DEMO_SEED)


def test_a_seed_gives_the_same_world_on_every_machine(world: World) -> None:
    """The passages of the demo's world never change, whatever the Python version."""
    text = "\n".join(f"{p.id}|{p.title}|{p.text}" for p in world.passages())

    assert (
        "49b8db9d5a5b62066071d9728f3f74ccd71adc80b363b8a2779640c3f55879d0"
        == hashlib.sha256(text.encode()).hexdigest()
    )


def test_another_seed_gives_another_world(world: World) -> None:
    """Hardly a name is shared between two worlds."""
    names = {entity.name for entity in world.entities}
    others = {entity.name for entity in make_world(DEMO_SEED + 1).entities}

    assert len(names & others) < len(names) // 20


def test_names_and_ids_are_unique(world: World) -> None:
    """An entity is known by its name, and its passage by its id."""
    assert 5000 == len({entity.name for entity in world.entities})
    assert 5000 == len({passage.id for passage in world.passages()})


def test_neighbours_name_each_other(world: World) -> None:
    """Whoever is named as next names the namer as previous."""
    for entity in world.entities:
        following = world.entity(entity.facts["next"])

        assert entity.name == following.facts["previous"]


def test_a_passage_says_every_fact_of_its_entity(world: World) -> None:
    """A reader of the passage needs nothing else."""
    for entity in world.entities[::97]:
        text = world.passage(entity).text

        assert all(value in text for value in entity.facts.values())


def test_a_right_article_states_exactly_the_questions_facts(world: World) -> None:
    """Reading the reference article back finds all that was asked, and nothing else."""
    for question in world.questions(50, seed=3):
        count = count_facts(world.article(question), question, world)

        assert 3 * CHAIN + 1 == count.right == count.asked == count.true == count.stated


def test_a_wrong_fact_counts_as_stated_but_not_as_right(world: World) -> None:
    """One changed word costs one right fact; the statement itself is still counted."""
    question = world.questions(1, seed=0)[0]
    last = question.facts[-1]
    article = world.article(question).replace(f" painted {last.value}.", " painted unicorn.")
    count = count_facts(article, question, world)

    assert (count.asked - 1, count.asked - 1) == (count.right, count.true)
    assert count.asked == count.stated


def test_a_missing_or_repeated_sentence_is_not_counted(world: World) -> None:
    """An empty text states nothing; saying everything twice adds nothing."""
    question = world.questions(1, seed=0)[0]
    article = world.article(question)

    assert 0 == count_facts("", question, world).stated
    assert count_facts(article, question, world) == count_facts(article * 2, question, world)


def test_questions_are_different_and_repeatable(world: World) -> None:
    """The same seed asks the same, about different entities."""
    asked = world.questions(100, seed=5)

    assert asked == world.questions(100, seed=5)
    assert 100 == len({question.subject for question in asked})


def test_a_broken_size_is_refused() -> None:
    """The ring of entities needs equally many of each kind."""
    with pytest.raises(ValueError, match="multiple of 4"):
        make_world(1, passages=5)


def test_the_sentences_own_words_cannot_be_values() -> None:
    """Each kind has one article sentence that states three facts, and one that states one."""
    for kind in language.KINDS:
        assert 3 == language.TOLD[kind].count("{") - 1
        assert 1 == language.CLOSING[kind].count("{") - 1


@pytest.mark.skipif(not MODEL.joinpath("model.safetensors").exists(), reason="not trained yet")
def test_the_checkpoint_is_small_and_plain() -> None:
    """At most 12 MB, loadable by transformers alone, with no code of its own."""
    config = json.loads(MODEL.joinpath("config.json").read_text(encoding="utf-8"))

    assert "LlamaForCausalLM" == config["architectures"][0]
    assert "auto_map" not in config
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 12_000_000


@pytest.mark.skipif(not MODEL.joinpath("tokenizer.json").exists(), reason="not trained yet")
@pytest.mark.parametrize(
    "text", ["def f(x):\n\treturn x  # twice\n\n", "  ünïcödé 漢字 🙂\r\n", "1999 a.b_c", "", "\0"]
)
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
    """Texts from outside the world, such as Python's documentation, survive unchanged."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    assert text == tokenizer.decode(tokenizer.encode(text).ids)
