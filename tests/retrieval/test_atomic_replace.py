"""A folder's name leads to a whole folder at every moment."""

import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from ralmspec_plugins.retrieval.storage import files
from ralmspec_plugins.retrieval.storage.files import atomic_replace, exchange


def made(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "kb.json").write_text(text)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="two renames elsewhere")
def test_two_folders_change_places(tmp_path: Path) -> None:
    """In one step; and where one is missing, nothing happens."""
    one, other = made(tmp_path / "one", "1"), made(tmp_path / "ö ther", "2")
    if not exchange(one, other):
        pytest.skip("this file system cannot exchange")

    assert "21" == (one / "kb.json").read_text() + (other / "kb.json").read_text()
    assert not exchange(one, tmp_path / "nowhere")
    assert "2" == (one / "kb.json").read_text()


@pytest.mark.parametrize("together", [True, False])
def test_the_new_folder_is_there_and_the_old_one_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """In one step or in two, with the usual rights, and nothing beside it."""
    if not together:
        monkeypatch.setattr(files, "exchange", lambda *_: False)
    target = tmp_path / "kb"
    for text in ("first", "second"):
        fresh = made(tmp_path / "fresh", text)
        fresh.chmod(0o700)
        atomic_replace(target, fresh)

        assert text == (target / "kb.json").read_text()
        assert 0o755 == target.stat().st_mode & 0o777
        assert [target] == list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="two renames elsewhere")
def test_the_name_is_never_missing(tmp_path: Path) -> None:
    """Whoever opens the knowledge base while it is replaced finds the old or the new one."""
    target = made(tmp_path / "kb", "whole")
    if not exchange(target, made(tmp_path / "probe", "whole")):
        pytest.skip("this file system cannot exchange")
    done = Event()
    missing = []

    def look() -> None:
        while not done.is_set():
            if not target.is_dir():
                missing.append(1)

    watcher = Thread(target=look)
    watcher.start()
    try:
        for number in range(200):
            atomic_replace(target, made(tmp_path / f"fresh-{number}", "whole"))
    finally:
        done.set()
        watcher.join()

    assert not missing
