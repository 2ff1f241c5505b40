"""Load a checkpoint's weights stacked, for training."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gemwright import tree
from gemwright.checkpoint.arena import aligned
from gemwright.checkpoint.load import Progress, load_weights, read_weights
from gemwright.checkpoint.open import Checkpoint
from gemwright.model.stack import StackedWeights, stack, stacked_paths, stacked_specs
from gemwright.train import lora
from gemwright.train.recipe import Recipe

_SILENT: Progress = lambda done, total: None  # noqa: E731


def load_for(recipe: Recipe, checkpoint: Checkpoint, progress: Progress = _SILENT) -> tuple[Any, StackedWeights | None]:
    """Load the weights that a recipe trains, float32, and those that stay as they are: None if it trains all.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    if recipe.method == "full":
        return load_stacked(checkpoint, "float32", progress), None
    packed = recipe.method == "qlora"
    frozen = load_packed(checkpoint, progress) if packed else load_stacked(checkpoint, recipe.dtype, progress)
    return lora.init(checkpoint.config, recipe.rank, recipe.seed), frozen


def load_stacked(checkpoint: Checkpoint, dtype: str, progress: Progress = _SILENT) -> StackedWeights:
    """Load the weights of a checkpoint onto the device, in a dtype, stacked; not those of a vision tower.

    Memory never holds more than the stacked weights and one weight of a layer.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    specs, paths = replace(stacked_specs(checkpoint.config), vision=None), stacked_paths(checkpoint.config)
    order = [path for stacked in tree.flatten(specs) for path in paths[stacked]]
    values = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, dtype, progress, order)
    leaves: dict[str, jax.Array] = {}
    for path, spec in tree.flatten(specs).items():
        whole = aligned(spec.size * np.dtype(dtype).itemsize).view(dtype).reshape(len(paths[path]), -1)
        for part in whole:
            part[...] = next(values)[1].reshape(-1)
        leaves[path] = jax.device_put(whole.reshape(spec.shape))
    return tree.build(specs, leaves)


def load_packed(checkpoint: Checkpoint, progress: Progress = _SILENT) -> StackedWeights:
    """Load the weights of a checkpoint in their stored format, stacked where layers have the same formats.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    params = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "stored", progress)
    return stack(checkpoint.config, replace(params, vision=None))
