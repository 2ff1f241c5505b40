"""Load a checkpoint's weights stacked, for training."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gemwright import sharding, tree
from gemwright.checkpoint.arena import aligned
from gemwright.checkpoint.load import Progress, load_weights, read_weights
from gemwright.checkpoint.open import Checkpoint
from gemwright.model.stack import StackedWeights, stack, stacked_paths, stacked_specs
from gemwright.train import lora
from gemwright.train.recipe import Recipe
from gemwright.weights import PackedTensor

_SILENT: Progress = lambda done, total: None  # noqa: E731


def load_frozen(
    recipe: Recipe, checkpoint: Checkpoint, progress: Progress = _SILENT, *, tower: bool = False
) -> StackedWeights | None:
    """Load the weights that a recipe does not train, with the vision tower or without; None if it trains all.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    if recipe.method == "full":
        return None
    if recipe.method == "qlora":
        return load_packed(checkpoint, progress, tower=tower)
    return load_stacked(checkpoint, recipe.dtype, progress, tower=tower)


def load_trained(recipe: Recipe, checkpoint: Checkpoint, progress: Progress = _SILENT, *, tower: bool = False) -> Any:
    """Load or initialize the weights that a recipe trains, float32.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    if recipe.method == "full":
        return load_stacked(checkpoint, "float32", progress, tower=tower)
    return lora.init(checkpoint.config, recipe.rank, recipe.seed)


def load_stacked(
    checkpoint: Checkpoint, dtype: str, progress: Progress = _SILENT, *, tower: bool = False
) -> StackedWeights:
    """Load the weights of a checkpoint onto the device, in a dtype, stacked.

    Memory never holds more than the stacked weights and one weight of a layer.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    specs, paths = stacked_specs(checkpoint.config, tower), stacked_paths(checkpoint.config, tower)
    order = [path for stacked in tree.flatten(specs) for path in paths[stacked]]
    values = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, dtype, progress, order)
    leaves: dict[str, jax.Array] = {}
    for path, spec in tree.flatten(specs).items():
        whole = aligned(spec.size * np.dtype(dtype).itemsize).view(dtype).reshape(len(paths[path]), -1)
        for part in whole:
            part[...] = next(values)[1].reshape(-1)
        leaves[path] = sharding.put(whole.reshape(spec.shape), sharding.sharding_of(spec.axes, spec.shape))
    return tree.build(specs, leaves)


def load_packed(checkpoint: Checkpoint, progress: Progress = _SILENT, *, tower: bool = False) -> StackedWeights:
    """Load the weights of a checkpoint in their stored format, stacked where layers have the same formats.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    params = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "stored", progress)

    def with_precise_activations(leaf: Any) -> Any:
        """Set 16 bits for activations: the gradient is that of exact products."""
        return replace(leaf, activation_bits=16) if isinstance(leaf, PackedTensor) else leaf

    def is_packed(leaf: object) -> bool:
        return isinstance(leaf, PackedTensor)

    return stack(checkpoint.config, jax.tree.map(with_precise_activations, params, is_leaf=is_packed), tower)
