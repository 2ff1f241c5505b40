"""Merge LoRA adapters into the weights of a checkpoint while they are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.load import Progress, read_weights
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint
from gemwright.checkpoint.updates import Updates, merge, replacement, update_config
from gemwright.model.config import Config
from gemwright.model.params import param_specs


def with_updates(checkpoint: Checkpoint, updates: Sequence[Updates]) -> Checkpoint:
    """Return the checkpoint with a head of its own if the updates need one."""
    config = update_config(checkpoint.config, updates)
    if config == checkpoint.config:
        return checkpoint
    return replace(checkpoint, config=config, mapping={**checkpoint.mapping, "head": checkpoint.mapping["embed"]})


def read_merged(
    checkpoint: Checkpoint,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    dtype: np.dtype[Any],
    updates: Sequence[Updates],
    progress: Progress,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Iterate over weights with the updates merged, in a dtype."""
    if not updates:
        return read_weights(checkpoint.file, mapping, config, dtype, progress)
    params = tree.flatten(param_specs(config))
    kept = [path for path in params if replacement(path, updates) is None]
    weights = read_weights(checkpoint.file, mapping, config, np.float32, progress, kept)

    def read(path: str) -> NDArray[Any]:
        whole = replacement(path, updates)
        values = next(weights)[1] if whole is None else whole[: params[path].shape[0]].reshape(params[path].shape)
        return merge(path, values, updates).astype(dtype)

    return ((path, read(path)) for path in params)
