"""Paths, partitions and combinations of trees."""

from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright import tree

few = settings(max_examples=60, deadline=None)


@tree.node
class Pair:
    left: Any
    right: Any
    label: str = tree.static()


def _is_pair(node: Any) -> bool:
    return isinstance(node, Pair)


def _trees(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaf,
        lambda part: st.one_of(
            st.lists(part, max_size=3),
            st.lists(part, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abc"), part, max_size=3),
            st.builds(Pair, part, part, st.sampled_from("xy")),
        ),
        max_leaves=12,
    )


trees = _trees(st.integers() | st.none())


@few
@given(trees, st.sets(st.integers(0, 11)), st.booleans())
def test_parts_combine_to_the_whole(whole: Any, numbers: set[int], pairs: bool):
    is_leaf = _is_pair if pairs else None
    paths = [path for path, _ in tree.leaves(whole, is_leaf)]
    chosen = {path for i, path in enumerate(paths) if i in numbers}
    kept, rest = tree.partition(whole, lambda path, _: path in chosen, is_leaf)
    assert [path for path, _ in tree.leaves(kept, is_leaf)] == [path for path in paths if path in chosen]
    assert [path for path, _ in tree.leaves(rest, is_leaf)] == [path for path in paths if path not in chosen]
    assert tree.combine(kept, rest) == tree.combine(rest, kept) == whole


@few
@given(trees, st.booleans())
def test_leaves_are_those_of_jax(whole: Any, pairs: bool):
    is_leaf = _is_pair if pairs else None
    found = [leaf for _, leaf in tree.leaves(whole, is_leaf)]
    assert found == jax.tree.leaves(whole, is_leaf=is_leaf)
    assert tree.map_with_path(lambda _, leaf: leaf, whole, is_leaf) == whole


def test_a_weight_of_any_kind_is_one_leaf():
    whole = {"a": Pair(1, 2, "x"), "b": (3, None)}
    assert tree.flatten(whole, _is_pair) == {"a": Pair(1, 2, "x"), "b.0": 3}
    assert list(tree.flatten(whole)) == ["a.left", "a.right", "b.0"]
    kept, rest = tree.partition(whole, lambda _, leaf: _is_pair(leaf), _is_pair)
    assert (kept, rest) == ({"a": Pair(1, 2, "x"), "b": (None, None)}, {"a": None, "b": (3, None)})


@pytest.mark.parametrize("second", [{"a": 1}, {"b": None}, {"a": (None,)}])
def test_trees_that_are_no_parts_of_one_do_not_combine(second: Any):
    with pytest.raises(ValueError, match="disjoint and alike"):
        tree.combine({"a": 1}, second)
