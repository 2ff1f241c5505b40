"""The result of a run as the updates of a model, which adapters and checkpoints are written from."""

from collections.abc import Iterator

import jax
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.updates import LowRank, Updates
from gemwright.model.config import Config
from gemwright.model.stack import StackedWeights, stacked_paths
from gemwright.train.lora import Adapters


def adapter_updates(config: Config, adapters: Adapters, scale: float) -> Updates:
    """Return the low-rank updates of trained adapters."""
    paths = stacked_paths(config)
    low_rank: dict[str, LowRank] = {}
    for stacked, factors in adapters.items():
        a, b = _host(factors.a), _host(factors.b)
        for repeat, path in enumerate(paths[stacked]):
            low_rank[path] = LowRank(a[repeat], b[repeat], scale)
    return Updates(low_rank, {}, config.vocab)


def full_updates(config: Config, params: StackedWeights) -> Updates:
    """Return trained weights as updates that replace those of the model."""
    return Updates({}, dict(_weights(config, params)), config.vocab)


def _weights(config: Config, params: StackedWeights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    paths = stacked_paths(config)
    for stacked, leaf in tree.flatten(params).items():
        values = _host(leaf)
        group = paths[stacked]
        yield from zip(group, values if stacked.startswith("stages.") else [values], strict=True)


def _host(leaf: jax.Array) -> NDArray[np.float32]:
    return np.asarray(leaf, np.float32)
