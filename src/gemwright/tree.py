"""Frozen dataclasses as pytrees, and the dotted paths of their leaves."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static() -> Any:
    """A field that is no child: part of the structure, compared by value."""
    return dataclasses.field(metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def node(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are children of a pytree node, but for the static ones."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    children = [field.name for field in fields if not field.metadata]
    return jax.tree_util.register_dataclass(cls, children, [field.name for field in fields if field.metadata])


def dotted(path: tuple[Any, ...]) -> str:
    """`layers.3.mixer.q` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by dotted path, in tree order. `None` is not a leaf."""
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def build(like: T, leaves: Mapping[str, Any]) -> T:
    """A tree of the shape of `like` with the leaves of `leaves`, by dotted path."""
    return map_with_path(lambda path, _: leaves[path], like)


def map_with_path(function: Callable[[str, Any], Any], tree: T) -> T:
    """Apply `function(path, leaf)` to every leaf."""

    def apply(path: tuple[Any, ...], leaf: Any) -> Any:
        return function(dotted(path), leaf)

    return jax.tree_util.tree_map_with_path(apply, tree)
