"""Load a checkpoint's weights stacked, for training."""

import jax
import numpy as np

from gemwright import tree
from gemwright.checkpoint.arena import aligned
from gemwright.checkpoint.load import Progress, load_weights, read_weights
from gemwright.checkpoint.open import Checkpoint
from gemwright.model.stack import StackedWeights, stack, stacked_paths, stacked_specs


def load_stacked(checkpoint: Checkpoint, dtype: str, progress: Progress = lambda done, total: None) -> StackedWeights:
    """Load the weights of a checkpoint onto the device, in a dtype, stacked.

    Memory never holds more than the stacked weights and one weight of a layer.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    specs, paths = stacked_specs(checkpoint.config), stacked_paths(checkpoint.config)
    order = [path for stacked in tree.flatten(specs) for path in paths[stacked]]
    values = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, dtype, progress, order)
    leaves: dict[str, jax.Array] = {}
    for path, spec in tree.flatten(specs).items():
        whole = aligned(spec.size * np.dtype(dtype).itemsize).view(dtype).reshape(len(paths[path]), -1)
        for part in whole:
            part[...] = next(values)[1].reshape(-1)
        leaves[path] = jax.device_put(whole.reshape(spec.shape))
    return tree.build(specs, leaves)


def load_packed(checkpoint: Checkpoint, progress: Progress = lambda done, total: None) -> StackedWeights:
    """Load the weights of a checkpoint in their stored format, stacked where neighboring layers have the same format.

    Raises:
        CheckpointError: As for `checkpoint.load.load_weights`.
    """
    params = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "stored", progress)
    return stack(checkpoint.config, params)
