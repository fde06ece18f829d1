"""Documents, queries and embeddings for the stores' tests: near ties, duplicates, odd texts."""

import hashlib
import random
from dataclasses import dataclass, field

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

WORDS = [
    "river",
    "stone",
    "copper",
    "lantern",
    "orbit",
    "velvet",
    "harbour",
    "comet",
    "meadow",
    "signal",
    "amber",
    "falcon",
    "glacier",
    "thunder",
    "ivory",
    "canyon",
    "ember",
    "willow",
    "quartz",
    "saffron",
    "naïve",
    "Ελλάδα",
    "北京",
    "δρόμος",
    "søster",
    "🜲",
    "zażółć",
]


@dataclass
class WordEmbeddings(Embeddings):
    """Sums a fixed random vector for each word, so that shared words make texts similar.

    `coarse`: whole numbers in few dimensions, so that many different texts score alike.
    `signs`: of them only the signs, in 4^n dimensions: lengths and cosines are exact in float32,
    so that ties are ties wherever a library's kernel rounds.
    Queries get another vector than passages of the same text, as with some real models.
    """

    dimension: int = 24
    coarse: bool = False
    signs: bool = False
    queries: int = 0
    _known: dict[str, np.ndarray] = field(default_factory=dict)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.queries += 1
        return self._vector("query " + text)

    def _vector(self, text: str) -> list[float]:
        words = text.split() or [""]
        total = np.sum([self._word(word) for word in words], axis=0)
        if self.signs:
            total = np.where(total < 0, -1.0, 1.0)
        elif not self.coarse:
            total = total / np.linalg.norm(total)
        return [float(value) for value in total.astype(np.float32)]

    def _word(self, word: str) -> np.ndarray:
        if word not in self._known:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
            generator = np.random.default_rng(seed)
            if self.coarse:
                self._known[word] = generator.integers(-1, 2, self.dimension).astype(np.float64)
            else:
                self._known[word] = generator.standard_normal(self.dimension)
        return self._known[word]


def corpus(size: int = 300, seed: int = 7) -> list[Document]:
    """Make documents of which one in six repeats another's text, and some are odd."""
    random_ = random.Random(seed)
    documents: list[Document] = []
    for number in range(size):
        text = " ".join(random_.choices(WORDS, k=random_.randint(1, 9)))
        if documents and random_.random() < 1 / 6:
            text = random_.choice(documents).page_content
        if number == 11:
            text = "comet 北京 " * 4000
        metadata = {"topic": f"t{number % 5}", "number": number}
        documents.append(Document(id=f"doc-{number}", page_content=text, metadata=metadata))
    return documents


def questions(count: int = 200, seed: int = 8) -> list[str]:
    """Make queries: some repeated, one empty, one very long, some exactly a document's text."""
    random_ = random.Random(seed)
    texts = [document.page_content for document in corpus()]
    made = ["", "river " * 500, "🜲 Ελλάδα"]
    while len(made) < count:
        chance = random_.random()
        if chance < 0.1:
            made.append(random_.choice(made))
        elif chance < 0.25:
            made.append(random_.choice(texts))
        else:
            made.append(" ".join(random_.choices(WORDS, k=random_.randint(1, 8))))
    return made


def batches(items: list[str], seed: int = 9) -> list[list[str]]:
    """Cut into batches of 1 to 40."""
    random_ = random.Random(seed)
    cut: list[list[str]] = []
    rest = list(items)
    while rest:
        size = random_.choice([1, 2, 3, 16, 40])
        cut.append(rest[:size])
        rest = rest[size:]
    return cut
