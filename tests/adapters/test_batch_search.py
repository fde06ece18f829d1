"""Which batch search fits a store: exactly known classes, and nothing that anybody changed."""

import logging
from typing import Any

import pytest

from ralmspec_plugins.adapters.batch_search import Registry
from ralmspec_plugins.adapters.fingerprint import class_names, overridden, qualified_name
from ralmspec_plugins.errors import ConfigError


class Store:
    """A vector store of a host's."""

    def search(self) -> int:
        return 1


class Special(Store):
    """One that may have changed anything."""


class Retriever:
    """A retriever over it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def search(self) -> int:
        return self.store.search()


def own_search(retriever: Retriever) -> str | None:
    """Stand for what comes with the integration."""
    return "own"


NAME = qualified_name(Store)


def registry(own: str | None = None) -> Registry[str]:
    return Registry("ralmspec_plugins.no_such_group", {} if own is None else {NAME: own})


def found(registry: Registry[str], store: Store) -> str | None:
    return registry.search_of(Retriever(store), store)


def test_exactly_the_class_counts() -> None:
    """A subclass has no batch search, until it has one of its own."""
    known = registry()
    assert found(known, Store()) is None

    known.register(NAME, lambda _: "store's")
    assert "store's" == found(known, Store())
    assert found(known, Special()) is None

    known.register(qualified_name(Special), lambda _: None)
    assert found(known, Special()) is None


def test_registered_comes_before_what_the_integration_brings() -> None:
    """A user may replace what is there; until then it is loaded by its name."""
    known = registry(f"{__name__}:own_search")
    assert "own" == found(known, Store())

    known.register(NAME, lambda _: "registered")
    assert "registered" == found(known, Store())
    assert "own" == found(registry(f"{__name__}:own_search"), Store())  # registries are apart


@pytest.mark.parametrize("whose", ["store", "retriever"])
def test_own_methods_of_an_object_are_not_known(whose: str) -> None:
    """What somebody has put on an instance may do anything."""
    store = Store()
    retriever: Any = Retriever(store)
    known = registry(f"{__name__}:own_search")
    assert "own" == known.search_of(retriever, store)

    patched: Any = store if whose == "store" else retriever
    patched.search = lambda: 2
    assert overridden(patched)
    assert known.search_of(retriever, store) is None


def test_a_factory_that_fails_is_not_used_again(caplog: pytest.LogCaptureFixture) -> None:
    """The host's own way is always there: once is enough, and it is said."""
    calls = []

    def failing(retriever: Retriever) -> str:
        calls.append(retriever)
        raise RuntimeError("no such client")

    known = registry()
    known.register(NAME, failing)
    with caplog.at_level(logging.WARNING):
        assert [None, None] == [found(known, Store()), found(known, Store())]

    assert len(calls) == len(caplog.records) == 1


def test_what_cannot_be_loaded_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """A missing module is no reason to fail."""
    with caplog.at_level(logging.WARNING):
        assert found(registry("no_such_module_here:search"), Store()) is None

    assert "it is ignored" in caplog.text


def test_names_are_qualified() -> None:
    """A bare class name names no class."""
    with pytest.raises(ConfigError, match="qualified"):
        registry().register("Store", own_search)

    assert class_names(Special()) == {NAME, qualified_name(Special), "builtins.object"}
