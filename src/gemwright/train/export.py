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
from gemwright.model.stack import StackedWeights, stacked_paths
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


def adapters_from_updates(config: Config, updates: Updates, scale: float, rank: int | None = None) -> Adapters:
    """Return the updates of an adapter as factors to continue training from.

    A matrix that the adapter does not update, in a group of stacked ones of which it updates some, gets factors of
    zero, whose gradient is zero.

    Args:
        config: The model.
        updates: The updates of the adapter, from `gemwright.checkpoint.updates.read_updates`.
        scale: The factor of `b a` in the run; b takes over the rest of the adapter's.
        rank: The rank of the run; None accepts any that is the same for stacked matrices.

    Raises:
        GemwrightError: The adapter updates other weights than the layers' matrices, has magnitudes (DoRA), or another
            rank.
    """
    paths, low_rank = stacked_paths(config), updates.low_rank
    sizes = {stacked: found for stacked, found in targets(config).items() if low_rank.keys() & set(paths[stacked])}
    trained = {path for stacked in sizes for path in paths[stacked]}
    if unknown := sorted({*updates.replaced, *low_rank} - trained):
        raise GemwrightError(f"The adapter updates {unknown[0]}, which a run does not train; merge it into its model.")
    if any(update.magnitude is not None for update in low_rank.values()):
        raise GemwrightError("The adapter has magnitudes (DoRA), which a run does not train; merge it into its model.")
    if not low_rank:
        raise GemwrightError("The adapter updates no weight of this model; use the model that it was trained on.")
    adapters: Adapters = {}
    for stacked, (repeats, outputs, inputs) in sizes.items():
        ranks = {len(low_rank[path].a) for path in paths[stacked] if path in low_rank}
        if len(ranks) > 1 or rank not in (None, *ranks):
            wanted = "one rank for stacked layers" if rank is None else f"rank {rank}"
            raise GemwrightError(
                f"The adapter has rank {max(ranks - {rank})} for {paths[stacked][0]} and the run needs {wanted}; "
                "set the rank of the run to that of the adapter."
            )
        own = ranks.pop()
        a, b = np.zeros((repeats, own, inputs), np.float32), np.zeros((repeats, outputs, own), np.float32)
        for repeat, path in enumerate(paths[stacked]):
            if (update := low_rank.get(path)) is not None:
                a[repeat], b[repeat] = update.a, update.b * np.float32(update.scale / scale)
        adapters[stacked] = Factors(jnp.asarray(a), jnp.asarray(b))
    return adapters


def full_updates(config: Config, params: StackedWeights) -> Updates:
    """Return trained weights as updates that replace those of the model."""
    return Updates({}, dict(_weights(config, params)), config.vocab)


def _weights(config: Config, params: StackedWeights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    paths = stacked_paths(config)
    for stacked, leaf in tree.flatten(params).items():
        values = _host(leaf)
        yield from zip(paths[stacked], list(values) if stacked.startswith("stages.") else [values], strict=True)


def _host(leaf: jax.Array) -> NDArray[np.float32]:
    return np.asarray(leaf, np.float32)
