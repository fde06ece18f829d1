"""Where models come from: a path that is none, or a hub out of reach, is an error at once."""

import socket
from pathlib import Path
from typing import Any

import pytest

from ralmspec_plugins.errors import ModelError
from ralmspec_plugins.retrieval.optional import local_files_only

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count what the hub is asked, which answers."""
    urls: list[str] = []

    class Session:
        def head(self, url: str, **_: Any) -> None:
            urls.append(url)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", Session)
    return urls


@pytest.mark.parametrize(
    "name", ["/a/model", "~/model", "./model", "../model", "a/b/c", "models/tiny", "a\\b", "model/"]
)
def test_a_path_that_is_not_there_is_no_name(
    name: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is not asked for it; `models/tiny` is a path where there is a folder `models`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError, match="There is no directory"):
        local_files_only(name)

    assert not asked


def test_folders_are_local_and_names_are_the_hub_s(asked: list[str], tmp_path: Path) -> None:
    """A file is neither."""
    (tmp_path / "file").write_text("x", encoding="utf-8")

    assert local_files_only(str(tmp_path))
    assert not asked
    assert [False, False] == [local_files_only(name) for name in ("owner/model", "gpt2")]
    assert [constants.ENDPOINT] * 2 == asked
    with pytest.raises(ModelError, match="is a file"):
        local_files_only(str(tmp_path / "file"))


@pytest.fixture(params=["set", "refused"])
def unreachable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub be switched off, or refuse connections."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "set")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("name", ["owner/model", "gpt2", "no such:name"])
def test_without_the_hub_only_the_cache_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not in it is named."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot be reached from here") as caught:
        local_files_only(name)

    assert name in str(caught.value)


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("mark", ["config.json", "modules.json"])
def test_what_is_in_the_cache_is_used(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's client keeps it: a revision, and its files."""
    files = tmp_path / "models--owner--model" / "snapshots" / "abc"
    files.mkdir(parents=True)
    (files / mark).write_text("{}", encoding="utf-8")
    refs = tmp_path / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc", encoding="utf-8")
    genuine = hub.try_to_load_from_cache
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda *given: genuine(*given, cache_dir=tmp_path)
    )

    assert local_files_only("owner/model")
