"""What a benchmark of KNN-LM is made with, built once and kept: model, datastore, indexes."""

import json
import re
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness.inputs import LoadedModel, load_model
from benchmarks.knn.train import Course, held_out_perplexity, learn, token_stream
from ralmspec_plugins.demo.python_docs import library_passages
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.knn.ann_index import KEY_RECIPES
from ralmspec_plugins.knn.ann_search import ApproximateSearch, approximate_search
from ralmspec_plugins.knn.build import build_datastore
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.model import KNNModel
from ralmspec_plugins.lm.prompts import encode
from ralmspec_plugins.retrieval.storage.files import write_whole

# The texts of KNN-LM's benchmarks: what a datastore is made of, and what is held out.


WIKIPEDIA: Final = "Wikipedia"
PYTHON: Final = "Python's documentation"
QUESTIONS: Final = "questions"
IN_DOMAIN: Final = (WIKIPEDIA, PYTHON)
HELD_OUT: Final = 12  # articles, a tenth of them all
PROMPT_WORDS: Final = 24
_EVERY: Final = 10  # module of Python's that is held out
_HELD_OUT_WORDS: Final = 200  # at least, of a module that is
_NO_TITLE: Final = "<unk>"  # WikiText's word for rare words, and so the title of many articles


@dataclass(frozen=True, slots=True)
class Domain:
    """Texts of one kind.

    Attributes:
        name: of the kind.
        documents: what a datastore may be made of, and a model learn from.
        held_out: what neither has seen.
    """

    name: str
    documents: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued; `source` is a domain, or "questions", which are of none."""

    text: str
    source: str

    @property
    def place(self) -> str:
        """Say whether texts of its kind are in the datastore."""
        return "in domain" if self.source in IN_DOMAIN else "out of domain"


def wikipedia(data: Path) -> Domain:
    """Read the shared articles; some of the whole ones are held out, with all their passages.

    Raises:
        InputError: there are too few.
    """
    passages = list(_rows(data / "wikipedia_passages.jsonl"))
    articles = [
        one for one in _rows(data / "wikipedia_articles.jsonl") if _NO_TITLE not in one["title"]
    ]
    chosen = articles[:: max(1, len(articles) // HELD_OUT)][:HELD_OUT]
    titles = {one["title"] for one in chosen}
    documents = [
        " ".join(one["text"] for one in of_title)
        for title, of_title in groupby(passages, key=lambda one: str(one["title"]))
        if title not in titles
    ]
    return _domain(WIKIPEDIA, documents, [one["text"] for one in chosen], data)


def python_docs() -> Domain:
    """Read the standard library's documentation, a document for each module.

    Raises:
        InputError: its sources are not on this machine.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules: dict[str, list[str]] = {}
    for passage in library_passages(library):
        titled = f"{passage.title}\n{passage.text}"
        modules.setdefault(passage.id.partition(".")[0].partition("#")[0], []).append(titled)
    texts = ["\n\n".join(modules[name]) for name in sorted(modules)]
    long = [text for text in texts if len(text.split()) >= _HELD_OUT_WORDS]
    held_out = long[::_EVERY]
    documents = [text for text in texts if text not in held_out]
    return _domain(PYTHON, documents, held_out, library)


def prompts(domains: Sequence[Domain], data: Path, each: int, outside: int) -> list[Prompt]:
    """Take the starts of held-out documents, so many of each domain, and of questions.

    Questions stand for what a datastore knows little of: the paper's prompts were
    those of Wiki-QA over WikiText (PAPERS 1.8).

    Raises:
        InputError: there are not so many.
    """
    asked = [
        Prompt(beginning(text, PROMPT_WORDS), domain.name)
        for number in range(each)
        for domain in domains
        for text in domain.held_out[number : number + 1]
    ]
    questions = list(_rows(data / "nq_questions.jsonl"))[:outside]
    asked += [Prompt(f"{one['question'].capitalize()}?", QUESTIONS) for one in questions]
    if len(asked) != each * len(domains) + outside:
        raise InputError(
            f"there are {len(asked)} prompts, but {each} of each of {len(domains)} domains and "
            f"{outside} questions are needed; ask for fewer"
        )
    return asked


def beginning(text: str, words: int) -> str:
    r"""Give the first words of a text, with what stands between them.

    >>> beginning("one  two\nthree", 2)
    'one  two'
    """
    found = re.match(rf"(?:\s*\S+){{0,{words}}}", text)
    assert found is not None
    return found[0]


def _domain(name: str, documents: list[str], held_out: list[str], place: Path) -> Domain:
    if not documents or not held_out:
        raise InputError(
            f"{place} gives {len(documents)} documents and {len(held_out)} to hold out; "
            "at least one of each is needed"
        )
    return Domain(name, tuple(documents), tuple(held_out))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


TRAINED: Final = "random:6x384"  # 13.8 million weights, as it is drawn
_DRAWN: Final = "random:"
_FACTS: Final = "facts.json"
_HELD_OUT_TOKENS: Final = 512
Watch = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Artefacts:
    """A model and a datastore of its keys, in a folder of their own.

    Attributes:
        folder: where they are.
        loaded: the model.
        datastore: of the domains, one behind the other.
        ends: the entries of the domains end here, by name and in order.
        facts: what building took, and what came of training; as JSON takes it.
    """

    folder: Path
    loaded: LoadedModel
    datastore: Datastore
    ends: dict[str, int]
    facts: dict[str, Any]

    def model(self) -> KNNModel:
        """Drive the model, with caches of its own."""
        about = self.datastore.about
        return KNNModel(
            self.loaded.model, self.loaded.tokenizer, key_kind=about.key_kind, bos=about.bos
        )

    def part(self, name: str) -> Datastore:
        """Give the entries of one domain as a datastore: the one that its texts alone make.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self.ends:
            raise ConfigError(f"unknown domain {name!r}; known are {', '.join(self.ends)}")
        names = list(self.ends)
        before = names[: names.index(name)]
        first, last = (self.ends[before[-1]] if before else 0), self.ends[name]
        store = self.datastore
        ends = store.document_ends[(store.document_ends > first) & (store.document_ends <= last)]
        about = replace(store.about, entries=last - first, documents=len(ends), source=name)
        return Datastore.of(store.keys[first:last], store.values[first:last], ends - first, about)

    def search(self, kind: str, k: int, **settings: Any) -> ApproximateSearch:
        """Open an approximate index; built with all cores the first time, and kept."""
        index = self.folder / kind
        return approximate_search(
            self.datastore, KEY_RECIPES[kind], k=k, index=index, build_threads=2, **settings
        )


def prepare(
    name: str,
    domains: Sequence[Domain],
    folder: Path,
    *,
    entries: int,
    course: Course | None = None,
    watch: Watch | None = None,
) -> Artefacts:
    """Open what is in a folder, and make what is not; what was begun is gone on with.

    Args:
        name: "demo", or a drawn model such as `TRAINED`, which is trained first.
        domains: their documents become entries, in this order.
        folder: where all of it is kept.
        entries: how many there shall be, about; all domains give their share.
        course: of the training.
        watch: called with what is going on, and how far it is.

    Raises:
        InputError: the documents make fewer entries than half of that.
        ConfigError: the folder was begun with another course, or for more or fewer entries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(folder)
    if facts.get("wanted", entries) != entries:
        raise ConfigError(
            f"{folder} has a datastore for which {facts['wanted']} entries were wanted, not "
            f"{entries}; give another folder"
        )
    told = watch or _untold
    loaded = _model(name, domains, folder, facts, course or Course(), told)
    if "built" not in facts:
        facts["wanted"] = entries
        # A drawn model has never seen a position behind its windows.
        context = (course or Course()).window if name.startswith(_DRAWN) else None
        _build(loaded, _chosen(loaded, domains, entries), context, folder, facts, told)
    store = Datastore.open(folder / "datastore")
    return Artefacts(folder, loaded, store, facts["built"]["ends"], facts)


def _model(
    name: str,
    domains: Sequence[Domain],
    folder: Path,
    facts: dict[str, Any],
    course: Course,
    told: Watch,
) -> LoadedModel:
    """Load the model; train it first if it is a drawn one that was not."""
    place = folder / "model"
    if place.exists():
        return load_model(str(place), ())
    texts = [text for domain in domains for text in domain.documents]
    loaded = load_model(name, texts)
    if not name.startswith(_DRAWN):
        return loaded
    held_out = {domain.name: domain.held_out for domain in domains}
    before = _perplexities(loaded, held_out)
    learned = learn(
        loaded.model,
        token_stream(texts, loaded.tokenizer),
        course,
        folder / "course",
        lambda step, loss: told(f"learning, loss {loss:.2f}", step),
    )
    training = {
        "course": asdict(course),
        "tokens": course.tokens,
        "seconds": learned.seconds,
        "losses": [
            float(np.mean(learned.losses[at : at + 50])) for at in range(0, len(learned.losses), 50)
        ],
        "perplexity_before": before,
        "perplexity_after": _perplexities(loaded, held_out),
    }
    _note(folder, facts, {"training": training})
    loaded.tokenizer.save_pretrained(place.with_name("model.new"))
    loaded.model.save_pretrained(place.with_name("model.new"))
    place.with_name("model.new").rename(place)
    return loaded


def _build(
    loaded: LoadedModel,
    chosen: dict[str, list[str]],
    context: int | None,
    folder: Path,
    facts: dict[str, Any],
    told: Watch,
) -> None:
    """Build the datastore, and note where each domain's entries end."""
    began_s = time.perf_counter()
    store = build_datastore(
        [text for texts in chosen.values() for text in texts],
        folder / "datastore",
        loaded.model,
        loaded.tokenizer,
        context=context,
        stride=None if context is None else 3 * context // 4,  # half would read all twice
        source=", ".join(chosen),
        progress=told,
    )
    count, ends = 0, {}
    for name, texts in chosen.items():
        count += len(texts)
        ends[name] = int(store.document_ends[count - 1])
    built = {"ends": ends, "seconds": time.perf_counter() - began_s}
    _note(folder, facts, {"built": built})


def _perplexities(loaded: LoadedModel, held_out: dict[str, tuple[str, ...]]) -> dict[str, float]:
    model = KNNModel(loaded.model, loaded.tokenizer, bos=loaded.tokenizer.bos_token_id is not None)
    return {
        name: held_out_perplexity(model, texts, _HELD_OUT_TOKENS)
        for name, texts in held_out.items()
    }


def _chosen(loaded: LoadedModel, domains: Sequence[Domain], entries: int) -> dict[str, list[str]]:
    """Choose whole documents in order, of each domain its share of the entries.

    A domain's share is its share of the tokens that there are.
    """
    lengths = {
        domain.name: [
            len(encode(loaded.tokenizer, text, literal=True)) for text in domain.documents
        ]
        for domain in domains
    }
    there = sum(map(sum, lengths.values()))
    if 2 * there < entries:
        raise InputError(f"the documents have {there} tokens, but {entries} entries are wanted")
    return {
        domain.name: list(_up_to(domain.documents, lengths[domain.name], entries / there))
        for domain in domains
    }


def _up_to(texts: Sequence[str], lengths: Sequence[int], share: float) -> Iterator[str]:
    most, so_far = share * sum(lengths), 0
    for text, length in zip(texts, lengths, strict=True):
        if so_far >= most:
            return
        so_far += length
        yield text


def _untold(stage: str, done: int) -> None:
    """Tell nobody."""


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / _FACTS
    facts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return facts


def _note(folder: Path, facts: dict[str, Any], more: dict[str, Any]) -> None:
    facts.update(more)
    write_whole(folder / _FACTS, json.dumps(facts, indent=1).encode())
