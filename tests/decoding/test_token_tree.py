"""Trees of drafts: what is a tree, what is kept of it, and how two become one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.decoding.token_tree import EMPTY, Evidence, TokenTree, merged
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.kv_cache import ancestors

PATHS = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=6)


def _paths(tree: TokenTree) -> set[tuple[int, ...]]:
    return {tuple(tree.tokens[at] for at in tree.path(node)) for node in range(len(tree))}


def _beginnings(paths: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(path[: size + 1]) for path in paths for size in range(len(path))}


@settings(max_examples=100, deadline=None)
@given(paths=PATHS)
def test_a_tree_has_each_beginning_once(paths: list[list[int]]) -> None:
    """Continuations share their common beginnings, and each is found by its tokens."""
    tree = TokenTree.of(paths)

    assert _beginnings(paths) == _paths(tree)
    assert len(tree) == len(_paths(tree))
    assert list(tree.depths()) == [len(tree.path(node)) for node in range(len(tree))]
    for node in range(len(tree)):
        assert tree.child(tree.parents[node], tree.tokens[node]) == node


@settings(max_examples=100, deadline=None)
@given(first=PATHS, second=PATHS)
def test_merging_is_a_union(first: list[list[int]], second: list[list[int]]) -> None:
    """A path is in the union if it is in one of the trees."""
    union = merged([TokenTree.of(first, "one"), EMPTY, TokenTree.of(second, "two")])

    assert _beginnings(first) | _beginnings(second) == _paths(union)


@settings(max_examples=100, deadline=None)
@given(paths=PATHS, nodes=st.sets(st.integers(0, 30)))
def test_what_is_kept_hangs_together(paths: list[list[int]], nodes: set[int]) -> None:
    """A token stays if it and all on the way to it are wanted."""
    tree = TokenTree.of(paths)
    wanted = {node for node in nodes if node < len(tree)}
    kept = {
        tuple(tree.tokens[at] for at in tree.path(node))
        for node in wanted
        if set(tree.path(node)) <= wanted
    }

    assert kept == _paths(tree.kept(wanted))


def test_what_is_outside_goes_with_what_hangs_on_it() -> None:
    """Tokens that there are not, negative ones and too deep ones."""
    tree = TokenTree.of([[1, 99, 2], [3, 4, 5], [-1, 6]])

    assert {(1,), (3,), (3, 4)} == _paths(tree.within(50, 2))


@settings(max_examples=100, deadline=None)
@given(paths=PATHS)
def test_rows_see_their_ancestors(paths: list[list[int]]) -> None:
    """The mask of a tree has, for each row, the rows on the way to it."""
    tree = TokenTree.of(paths)
    seen = ancestors(tree.parents)

    assert [set(tree.path(node)) for node in range(len(tree))] == [
        set(row.nonzero()[0].tolist()) for row in seen
    ]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"tokens": (1,), "parents": ()}, "a parent, a value and evidence"),
        ({"tokens": (1,), "parents": (0,)}, "precede its child"),
        ({"tokens": (1, 1), "parents": (-1, -1)}, "siblings"),
        ({"tokens": (1,), "parents": (-1,), "evidence": (Evidence("a"),) * 2}, "for each token"),
    ],
)
def test_what_is_no_tree_is_refused(tree: dict[str, object], words: str) -> None:
    """Each message says what is wrong."""
    with pytest.raises(ConfigError, match=words):
        TokenTree(**tree)  # type: ignore[arg-type]
