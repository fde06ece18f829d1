"""A datastore that is stopped anywhere goes on where it was, and ends with the same bytes."""

import errno
import hashlib
import itertools
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.knn import Datastore
from ralmspec_plugins.knn.build import KeyMaker, build_datastore, cutting_for
from ralmspec_plugins.lm.prompts import encode
from ralmspec_plugins.retrieval.storage import format as folders
from ralmspec_plugins.retrieval.storage.journal import JOURNAL, folder_of
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.interruptions import stopping

TEXTS = (
    "The lighthouse keeper counted the ships that passed the island before the storm.",
    "",
    "A passage is put in front of the prompt. " * 4,
    "x",
    "The señor pays 25 € and smiles 🙂",
    "ships " * 20,
)
SETTINGS: dict[str, Any] = {"context": 16, "stride": 8, "batch_size": 3}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Datastore]:
    def built(target: Path, texts: Iterable[str] = TEXTS, **changes: Any) -> Datastore:
        options = {"model": llama, "tokenizer": tokenizer, **SETTINGS, **changes}
        return build_datastore(texts, target, **options)

    return built


def bytes_of(folder: Path) -> dict[str, str]:
    """Digest each file of a folder."""
    files = (file for file in folder.iterdir() if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[..., Datastore]
) -> dict[str, str]:
    """What an uninterrupted build writes."""
    folder = tmp_path_factory.mktemp("expected") / "store"
    build(folder)
    assert ["store"] == names(folder.parent)
    return bytes_of(folder)


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    assert isinstance(tokenizer.bos_token_id, int)
    return [tokenizer.bos_token_id, *encode(tokenizer, text, literal=True)]


def test_every_token_behind_the_first_is_a_value(
    tmp_path: Path, build: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    """In the order of the texts, of which one without any has no end of its own."""
    store = build(tmp_path / "store")
    documents = [tokens_of(tokenizer, text)[1:] for text in TEXTS]
    lengths = [len(document) for document in documents if document]

    assert list(itertools.chain.from_iterable(documents)) == store.values.tolist()
    assert np.cumsum(lengths).tolist() == store.document_ends.tolist()
    assert (5, sum(lengths)) == (store.about.documents, store.about.entries)
    assert cutting_for(tiny_llama(), tokenizer, context=16, stride=8).count(TEXTS) == len(store)


def _direct(model: Any, tokens: list[int], end: int, context: int, stride: int) -> Any:
    """Run alone the window that the position before `end` is new in; give its last key."""
    start = 0
    while start + context < end:
        start += stride
    seen = []
    handle = model.model.layers[-1].mlp.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0])
    )
    with torch.inference_mode():
        model(input_ids=torch.tensor([tokens[start:end]]))
    handle.remove()
    return seen[0][0, -1].numpy()


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (16, 8), (16, 16), (7, 3), (5, 1)])
def test_keys_are_those_of_a_window_read_alone(
    tmp_path: Path,
    build: Any,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    stride: int,
) -> None:
    """Each entry's key is the model's at the token before, behind just its window's tokens."""
    store = build(tmp_path / "store", context=context, stride=stride)
    expected = [
        _direct(llama, tokens, end, context, stride)
        for tokens in (tokens_of(tokenizer, text) for text in TEXTS)
        for end in range(1, len(tokens))
    ]

    np.testing.assert_allclose(np.stack(expected), store.keys, rtol=2e-3, atol=2e-3)


def test_every_position_has_enough_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    """Context minus stride tokens at least, where the document has as many."""
    for context, stride in [(16, 8), (16, 16), (7, 3), (5, 1), (1, 1)]:
        cutting = cutting_for(tiny_llama(), tokenizer, context=context, stride=stride)
        position = 0
        for window in cutting.windows(TEXTS[:1]):
            new = len(window.following)
            before = len(window.tokens) - new

            assert len(window.tokens) <= context
            assert before >= min(position, context - stride)
            position += new
        assert position == cutting.count(TEXTS[:1])


def test_it_does_not_matter_which_windows_share_a_pass(tmp_path: Path, build: Any) -> None:
    """But for the last bits: padding is not seen."""
    one = build(tmp_path / "one", batch_size=1)
    many = build(tmp_path / "many", batch_size=50)

    np.testing.assert_allclose(one.keys, many.keys, rtol=2e-3, atol=2e-3)
    assert one.values.tolist() == many.values.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["ffn_input", "output"])
def test_other_models_and_kinds(tmp_path: Path, build: Any, kind: str, dtype: torch.dtype) -> None:
    """A GPT-2 in 32 and 16 bit, with the hidden state that its logits are made of, too."""
    model: Any = tiny_gpt2(dtype=dtype, context=64)
    store = build(tmp_path / "store", model=model, key_kind=kind)
    tokens = [0, *encode(tiny_tokenizer(), TEXTS[4], literal=True)][:9]
    with torch.inference_mode():
        states = model.transformer(torch.tensor([tokens])).last_hidden_state[0].float()
    first = int(store.document_ends[2])  # of TEXTS[4]

    close = np.allclose(states[:8], store.keys[first : first + 8], rtol=0.05, atol=0.05)
    assert close == (kind == "output")
    assert kind == store.about.key_kind


@pytest.mark.parametrize(
    ("bos", "eos", "first", "last"),
    [(True, False, "The", "."), (False, False, " lighthouse", "."), (True, True, "The", "</s>")],
)
def test_first_and_last_tokens(
    tmp_path: Path, build: Any, tokenizer: Any, bos: bool, eos: bool, first: str, last: str
) -> None:
    """Behind BOS the first token is a value, too; EOS is one where it is asked for."""
    text = "The lighthouse keeper counted."
    store = build(tmp_path / "store", [text], bos=bos, eos=eos)
    shown = tokenizer.decode(store.values.tolist(), skip_special_tokens=False)
    whole = "The lighthouse keeper counted." + ("</s>" if eos else "")
    begins = tokenizer.decode(encode(tokenizer, text)[:1]) if not bos else ""

    assert whole.removeprefix(begins) == shown
    assert shown.startswith(first.strip()) or not bos
    assert shown.endswith(last)
    assert (bos, eos) == (store.about.bos, store.about.eos)


def test_a_tokenizer_without_bos_has_none_to_give(tmp_path: Path, build: Any) -> None:
    """By default there is none then, and asking for it is an error; so is text that looks so."""
    bare = tiny_tokenizer(bos=False)
    store = build(tmp_path / "store", ["of </s> and <s>"], tokenizer=bare)

    assert not store.about.bos
    assert bare.eos_token_id not in store.values
    with pytest.raises(ConfigError, match="bos is set, but the tokenizer has no such token"):
        build(tmp_path / "other", tokenizer=bare, bos=True)


def test_the_callers_eyes_see_it_go(tmp_path: Path, build: Any, expected: Any) -> None:
    """Stage by stage, how many entries are through; again, when it is gone on with."""
    told: list[tuple[str, int]] = []

    def stopped(stage: str, entries: int) -> None:
        told.append((stage, entries))
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "store", progress=stopped)
    kept = names(tmp_path)
    again: list[tuple[str, int]] = []
    store = build(tmp_path / "store", progress=lambda *stage: again.append(stage))

    assert [".store.building"] == kept
    assert [("checking", entries) for _, entries in told] == again[:3]
    assert ["encoding"] * (len(again) - 5) == [stage for stage, _ in again[3:-2]]
    assert [("finishing", 0), ("finishing", len(store))] == again[-2:]
    assert again[-3] == ("encoding", len(store))
    assert expected == bytes_of(tmp_path / "store")


@pytest.mark.parametrize(
    ("first", "error"),
    [(0, OSError(errno.ENOSPC, "No space left on device")), (1, KeyboardInterrupt())],
    ids=["full", "interrupted"],
)
def test_stopped_at_any_write_it_goes_on(
    tmp_path: Path, build: Any, expected: dict[str, str], first: int, error: BaseException
) -> None:
    """A full disk or Ctrl-C, wherever it comes: the old one stays whole, and the next run ends."""
    store = tmp_path / "store"
    build(store, TEXTS[:1])
    old = bytes_of(store)
    for at in itertools.count(first, 2):  # the two errors share the places between them
        with pytest.MonkeyPatch.context() as patch:
            reached = stopping(patch, at, error)
            try:
                build(store)
            except type(error):
                assert bytes_of(store) in (old, expected)
        if not reached():
            break
        build(store)

        assert expected == bytes_of(store)
        assert ["store"] == names(tmp_path)
        build(store, TEXTS[:1])
        assert old == bytes_of(store)
    assert at > 25


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from tests.knn.test_build import SETTINGS, TEXTS
from ralmspec_plugins.knn.build import build_datastore
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer

def build(target, dies_at):
    torch.set_num_threads(1)
    fsync, count = os.fsync, iter(range(10**6))
    def last(descriptor):
        if next(count) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
    os.fsync = last
    build_datastore(TEXTS, target, tiny_llama(context=64), tiny_tokenizer(), **SETTINGS)

for target, dies_at in zip(sys.argv[2::2], sys.argv[3::2]):
    child = os.fork()
    if not child:
        build(target, int(dies_at))
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no SIGKILL here")
@pytest.mark.parametrize(
    "points",
    [(0, 13, 23), pytest.param((0, 3, 8, 13, 18, 20, 23), marks=pytest.mark.slow)],
    ids=len,
)
def test_killed_it_goes_on(
    tmp_path: Path, build: Any, expected: dict[str, str], points: tuple[int, ...]
) -> None:
    """SIGKILL at the start, in the middle and at the end: the next run writes the same bytes."""
    targets = [tmp_path / f"at-{point}" / "store" for point in points]
    arguments = [str(part) for pair in zip(targets, points, strict=True) for part in pair]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(ROOT), *arguments],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checked = []
    for target in targets:
        assert ".store.building" in names(target.parent)
        told: list[tuple[str, int]] = []
        build(target, progress=lambda *stage, told=told: told.append(stage))
        checked.append(sum(stage == "checking" for stage, _ in told))

        assert expected == bytes_of(target)
        assert ["store"] == names(target.parent)
    assert b"9\n" * len(points) == killed.stdout
    assert checked == sorted(checked)
    assert 0 == checked[0] < checked[len(points) // 2] < checked[-1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names open files by /proc")
def test_a_batch_is_on_the_disk_before_the_journal_says_so(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all that a folder's about.json names before that folder gets its name."""
    order: list[str] = []
    fsync, replace = os.fsync, folders.atomic_replace

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def replaced(target: Path, fresh: Path) -> None:
        order.append("replaced")
        replace(target, fresh)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(folders, "atomic_replace", replaced)
    build(tmp_path / "store", TEXTS[:3])
    arrays = ["keys.npy", "values.npy"]
    batch = [*arrays, JOURNAL]
    end = order.index("replaced")

    assert [JOURNAL, *arrays, ".store.building", JOURNAL, *batch] == order[:8]
    assert [*batch, JOURNAL, *arrays, "document_ends.npy", "about.json"] == order[end - 8 : end]
    assert ["fresh", tmp_path.name] == order[end + 1 :]


def unfinished(build: Any, folder: Path, batches: int = 4) -> Path:
    """Leave a build after so many batches."""
    count = itertools.count(1)

    def stop(stage: str, entries: int) -> None:
        if next(count) == batches:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        build(folder / "store", progress=stop)
    return folder / "store"


CHANGES: dict[str, tuple[Any, Callable[[], dict[str, Any]], str]] = {
    "context": (TEXTS, lambda: {"context": 15}, "context was 16 and is 15"),
    "stride": (TEXTS, lambda: {"stride": 7}, "stride was 8 and is 7"),
    "batch size": (TEXTS, lambda: {"batch_size": 4}, "batch_size was 3 and is 4"),
    "kind": (TEXTS, lambda: {"key_kind": "output"}, "key_kind was 'ffn_input' and is 'output'"),
    "eos": (TEXTS, lambda: {"eos": True}, "eos was False and is True"),
    "weights": (TEXTS, lambda: {"model": tiny_llama(seed=1, context=64)}, "model was '.*' and is"),
    "precision": (
        TEXTS,
        lambda: {"model": tiny_llama(dtype=torch.bfloat16, context=64)},
        "precision was 'float32' and is 'bfloat16'",
    ),
    "tokenizer": (
        TEXTS,
        lambda: {"tokenizer": tiny_tokenizer(bos=False)},
        "tokenizer was '.*' and",
    ),
    "a letter": (
        [TEXTS[0].replace("storm", "storn"), *TEXTS[1:]],
        dict,
        "entries 0 to .* are not those",
    ),
    "order": (TEXTS[::-1], dict, "entries 0 to .* are not those"),
    "fewer": (TEXTS[:2], dict, "are not those that were encoded before"),
    "none": ([], dict, "no text has two tokens"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_is_mixed(tmp_path: Path, build: Any, expected: dict[str, str], name: str) -> None:
    """Other texts, models or settings are refused by name, and nothing of the first is lost."""
    texts, changes, reason = CHANGES[name]
    store = unfinished(build, tmp_path)
    before = bytes_of(folder_of(store))
    with pytest.raises(ValueError, match=reason) as caught:
        build(store, texts, **changes())

    assert isinstance(caught.value, ConfigError | IndexFileError | InputError)
    assert name == "none" or "restart=True (--restart" in str(caught.value)
    assert before == bytes_of(folder_of(store))
    build(store)
    assert expected == bytes_of(store)


def test_a_restart_forgets(tmp_path: Path, build: Any) -> None:
    """With restart=True other texts and settings are taken."""
    store = unfinished(build, tmp_path)
    built = build(store, TEXTS[:1], restart=True, context=10, stride=5)

    assert (10, 1) == (built.about.context, built.about.documents)
    assert ["store"] == names(tmp_path)


def test_more_texts_than_before_are_refused(tmp_path: Path, build: Any) -> None:
    """A build that had met the end of its texts is not gone on with behind it."""
    whole = (TEXTS[0], TEXTS[0], TEXTS[0])
    length = len(tokens_of(tiny_tokenizer(), TEXTS[0])) - 1
    options = {"context": length, "stride": 1, "batch_size": 3}  # so that they fill a portion
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "atomic_replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path / "store", whole, **options)

    with pytest.raises(IndexFileError, match=r"more than the .* entries there were before"):
        build(tmp_path / "store", (*whole, TEXTS[0]), **options)
    with pytest.raises(IndexFileError, match="are not those"):
        build(tmp_path / "store", whole[:2], **options)


@pytest.mark.parametrize("file", ["keys.npy", "values.npy"])
def test_what_was_changed_on_the_disk_is_not_gone_on_with(
    tmp_path: Path, build: Any, file: str
) -> None:
    """A changed or a missing byte of a batch is noticed before anything is added to it."""
    store = unfinished(build, tmp_path)
    grown = folder_of(store) / file
    content = bytearray(grown.read_bytes())
    content[-3] ^= 1
    grown.write_bytes(content)
    with pytest.raises(IndexFileError, match=r"is not what was written; .*--restart"):
        build(store)
    grown.write_bytes(content[:-1])
    with pytest.raises(IndexFileError, match=f"{file} is damaged"):
        build(store)


def _loud(factor: float) -> PreTrainedModel:
    """A model whose hidden states are as large as that."""
    model = tiny_llama(context=64)
    with torch.no_grad():
        model.model.layers[-1].post_attention_layernorm.weight.mul_(factor)
    return model


@pytest.mark.parametrize("factor", [1e6, float("nan")])
def test_a_key_beyond_float16_is_refused(tmp_path: Path, build: Any, factor: float) -> None:
    """The entry is named, and nothing is left behind."""
    with pytest.raises(InputError, match=r"entry 0 is not finite in float16.*ffn_input"):
        build(tmp_path / "store", model=_loud(factor))

    assert [] == names(tmp_path)


def test_a_later_key_beyond_float16_costs_itself_alone(tmp_path: Path, build: Any) -> None:
    """What was encoded before stays, and the number of the entry counts from the beginning."""
    store = unfinished(build, tmp_path, batches=2)
    through: list[int] = []

    def overflowing(maker: KeyMaker, windows: Any) -> Any:
        return np.full((sum(len(w.following) for w in windows), 32), np.inf, dtype=np.float16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyMaker, "keys", overflowing)
        with pytest.raises(InputError) as caught:
            build(store, progress=lambda _, entries: through.append(entries))

    assert f"key of entry {through[-1]} is not finite" in str(caught.value)
    assert [".store.building"] == names(tmp_path)


def test_memory_holds_one_portion(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of keys the last portion at most is alive, and texts are taken as they are needed."""
    alive: list[weakref.ref[Any]] = []
    taken: list[int] = []
    read: list[int] = []
    most: list[tuple[int, int]] = []
    make = KeyMaker.keys

    def made(maker: KeyMaker, windows: Any) -> Any:
        keys = make(maker, windows)
        alive.append(weakref.ref(keys))
        read.append(len(windows))
        return keys

    def texts() -> Iterator[str]:
        for number in range(60):
            taken.append(number)
            yield f"The keeper counted {number} ships."

    def watch(stage: str, entries: int) -> None:
        held = sum(reference() is not None for reference in alive)
        most.append((held, len(taken) - sum(read)))

    monkeypatch.setattr(KeyMaker, "keys", made)
    store = build(tmp_path / "store", texts(), progress=watch, context=64, stride=32)

    assert 60 == store.about.documents == len(taken)
    assert len(alive) > 3
    assert max(held for held, _ in most) <= 1
    assert max(ahead for _, ahead in most) <= 1


_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "context": ({"context": 65}, "context is 65, but the model's is 64"),
    "no context": ({"context": 0, "stride": None}, "context=0"),
    "stride": ({"stride": 17}, "stride=17 and context=16"),
    "no stride": ({"stride": 0}, "stride must be at least 1"),
    "batch size": ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    "kind": ({"key_kind": "query"}, "one of ffn_input, output, got 'query'"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_bad_settings_are_refused_before_any_text_is_read(
    tmp_path: Path, build: Any, name: str
) -> None:
    """The message says what was got, and nothing is left."""
    changes, reason = _REFUSED[name]
    texts = iter(TEXTS)
    with pytest.raises(ConfigError, match=reason):
        build(tmp_path / "store", texts, **changes)

    assert [] == names(tmp_path)
    assert TEXTS == tuple(texts)


@pytest.mark.parametrize(
    ("text", "reason"), [(b"bytes", "text 1 must be a str, got bytes"), ("\ud800", "no valid text")]
)
def test_bad_texts_are_refused(tmp_path: Path, build: Any, text: Any, reason: str) -> None:
    """By number, before the model sees them."""
    with pytest.raises(InputError, match=reason):
        build(tmp_path / "store", ["A text.", text])

    assert [] == names(tmp_path)


def test_something_else_at_the_target_is_left_alone(tmp_path: Path, build: Any) -> None:
    """A folder that is no datastore, and a datastore whose building fails."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    with pytest.raises(IndexFileError, match="exists and is not a datastore"):
        build(tmp_path / "notes")
    build(tmp_path / "store")
    before = bytes_of(tmp_path / "store")
    with pytest.raises(InputError):
        build(tmp_path / "store", [])

    assert before == bytes_of(tmp_path / "store")
    assert ["notes", "store"] == names(tmp_path)


def test_what_belongs_to_no_datastore_is_not_removed_with_it(tmp_path: Path, build: Any) -> None:
    """Its search indexes are of the old keys, and go; a file of somebody's stops it before that."""
    store = tmp_path / "store"
    build(store)
    before = bytes_of(store)
    for name in ("hnsw", "notes"):
        (store / name).mkdir()
    (store / "hnsw" / "index.json").write_text("{}")
    with pytest.raises(IndexFileError, match="files that belong to no datastore: notes; move them"):
        build(store)
    (store / "notes").rmdir()
    build(store)

    assert before == bytes_of(store)


def test_an_open_datastore_outlives_its_replacement(tmp_path: Path, build: Any) -> None:
    """Who has it open keeps reading what was there."""
    store = build(tmp_path / "store")
    keys = np.array(store.keys)
    other = build(tmp_path / "store", TEXTS[2:3])

    assert np.array_equal(keys, store.keys)
    assert store.signature != other.signature
