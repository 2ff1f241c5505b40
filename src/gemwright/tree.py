"""Frozen dataclasses as pytrees, and operations on trees by the dotted path of each leaf."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar, dataclass_transform

import jax

T = TypeVar("T")
IsLeaf: TypeAlias = Callable[[Any], bool]
"""Returns whether a subtree is a leaf, as in `jax.tree.map`."""


def static() -> Any:
    """Declare a field that is not a child: part of the tree's structure, compared by value."""
    return dataclasses.field(metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def node(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree node, whose children are its fields that are not static."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    children = [field.name for field in fields if not field.metadata]
    return jax.tree_util.register_dataclass(cls, children, [field.name for field in fields if field.metadata])


def dotted(path: tuple[Any, ...]) -> str:
    """Return `layers.3.mixer.q` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def leaves(tree: Any, is_leaf: IsLeaf | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each leaf, in tree order. `None` is not a leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield dotted(path), leaf


def flatten(tree: Any, is_leaf: IsLeaf | None = None) -> dict[str, Any]:
    """Return the leaves by dotted path, in tree order."""
    return dict(leaves(tree, is_leaf))


def build(like: T, leaves: Mapping[str, Any]) -> T:
    """Return a tree with the structure of `like` and the leaves of `leaves`, by dotted path."""
    return map_with_path(lambda path, _: leaves[path], like)


def map_with_path(function: Callable[[str, Any], Any], tree: T, is_leaf: IsLeaf | None = None) -> T:
    """Apply `function(path, leaf)` to every leaf."""

    def apply(path: tuple[Any, ...], leaf: Any) -> Any:
        return function(dotted(path), leaf)

    return jax.tree_util.tree_map_with_path(apply, tree, is_leaf=is_leaf)


def partition(tree: T, keep: Callable[[str, Any], bool], is_leaf: IsLeaf | None = None) -> tuple[T, T]:
    """Split a tree into the leaves for which `keep(path, leaf)` is true, and the others.

    Both results have the structure of `tree` with None for each leaf of the other, so that `jax.grad` with respect to
    the first, say the trainable weights, skips the second. `combine` is the inverse.
    """
    kept = map_with_path(lambda path, leaf: leaf if keep(path, leaf) else None, tree, is_leaf)
    rest = map_with_path(lambda path, leaf: None if keep(path, leaf) else leaf, tree, is_leaf)
    return kept, rest


def combine(first: T, second: T) -> T:
    """Return the tree of which `first` and `second` are the parts, as from `partition`.

    Raises:
        ValueError: The structures differ, or both have the same leaf.
    """
    if first is None or second is None:
        return second if first is None else first
    parts, structure = _children(first)
    others, same = _children(second)
    if structure != same or any(part is first for part in parts):
        raise ValueError(f"two parts of a tree must be disjoint and alike, got {structure} and {same}.")
    return jax.tree_util.tree_unflatten(structure, list(map(combine, parts, others)))


def _children(tree: Any) -> tuple[list[Any], Any]:
    """Return the children of a node and its structure."""
    return jax.tree.flatten(tree, is_leaf=lambda part: part is not tree)
