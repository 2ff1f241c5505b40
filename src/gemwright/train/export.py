"""The trained weights of a run as the updates of a model, which adapters and checkpoints are written from, and back."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.updates import LowRank, Updates
from gemwright.errors import GemwrightError
from gemwright.model.config import Config
from gemwright.model.stack import STACKED, StackedWeights, stacked_paths
from gemwright.train.lora import Adapters, Factors, targets


def adapter_updates(config: Config, adapters: Adapters, scale: float) -> Updates:
    """Return the low-rank updates of trained adapters; matrices that have none are left out."""
    paths = stacked_paths(config)
    low_rank: dict[str, LowRank] = {}
    for stacked, factors in adapters.items():
        for path, a, b in zip(paths[stacked], _host(factors.a), _host(factors.b), strict=True):
            if a.any():
                low_rank[path] = LowRank(a, b, scale)
    return Updates(low_rank, {}, config.vocab)


def adapters_from_updates(config: Config, updates: Updates, rank: int, scale: float) -> Adapters:
    """Return the updates of an adapter as factors to continue training from, of the same structure as those of `init`.

    Matrices that the adapter does not update get factors of zero, whose gradients are zero, so they stay as they are.

    Args:
        config: The model.
        updates: The updates of the adapter, from `gemwright.checkpoint.updates.read_updates`.
        rank: The rank of the run.
        scale: The factor of `b a` in the run. If the adapter's is another, b takes over their ratio.

    Raises:
        GemwrightError: The adapter has another rank or magnitudes (DoRA), or updates other weights than those that a
            run with adapters trains.
    """
    paths, sizes, low_rank = stacked_paths(config), targets(config), updates.low_rank
    trained = {path for stacked in sizes for path in paths[stacked]}
    others = sorted({*updates.replaced, *low_rank} - trained)
    others += [path for path, update in low_rank.items() if update.magnitude is not None]
    if others:
        raise GemwrightError(
            f"The adapter updates {others[0]} in a way that a run does not continue; merge it into its model first."
        )
    for path, update in low_rank.items():
        if len(update.a) != rank:
            raise GemwrightError(
                f"The adapter has rank {len(update.a)} for {path} and the run has rank {rank}; give both the same."
            )
    adapters: Adapters = {}
    for stacked, (repeats, outputs, inputs) in sizes.items():
        a, b = np.zeros((repeats, rank, inputs), np.float32), np.zeros((repeats, outputs, rank), np.float32)
        for repeat, path in enumerate(paths[stacked]):
            if (update := low_rank.get(path)) is not None:
                a[repeat], b[repeat] = update.a, update.b * np.float32(update.scale / scale)
        adapters[stacked] = Factors(jnp.asarray(a), jnp.asarray(b))
    return adapters


def full_updates(config: Config, params: StackedWeights) -> Updates:
    """Return trained weights as updates that replace those of the model."""
    return Updates({}, dict(_weights(config, params)), config.vocab)


def _weights(config: Config, params: StackedWeights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    paths = stacked_paths(config, tower=params.vision is not None)
    for stacked, leaf in tree.flatten(params).items():
        values = _host(leaf)
        yield from zip(paths[stacked], list(values) if stacked.startswith(STACKED) else [values], strict=True)


def _host(leaf: jax.Array) -> NDArray[np.float32]:
    return np.asarray(leaf, np.float32)
