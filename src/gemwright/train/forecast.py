"""What a run will need, before its weights are loaded: memory, disk space, steps and tokens."""

import math
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemwright import memory
from gemwright.checkpoint.files.atomic import free_bytes
from gemwright.data import Batches, Dataset
from gemwright.errors import GemwrightError

RUNTIME = 550_000_000
"""Bytes of Python, JAX and the compiled programs, measured."""


@dataclass(frozen=True)
class Forecast:
    """The needs of a run.

    Attributes:
        weights: Bytes of the frozen weights.
        state: Bytes of the trained weights, their average and the optimizer's state.
        working: Bytes of gradients and activations, as the compiler planned them, and of a batch.
        tokens: Number of tokens of all steps, without padding.
        learned: Number of labeled tokens of all steps.
        padding: Share of padding.
        steps: Number of steps.
        epochs: Number of passes over the data.
        free: Bytes of memory that are free; None if unknown.
    """

    weights: int
    state: int
    working: int
    tokens: int
    learned: int
    padding: float
    steps: int
    epochs: float
    free: int | None

    @property
    def memory(self) -> int:
        """Bytes of memory at most."""
        return self.weights + self.state + self.working + RUNTIME

    def __str__(self) -> str:
        parts = f"{_size(self.weights)} weights, {_size(self.state)} trained, {_size(self.working)} activations"
        free = "" if self.free is None else f"; {_size(self.free)} are free"
        return (
            f"{self.steps:,} steps, {self.epochs:.3g} epochs: {self.tokens:,} tokens ({self.learned:,} labeled), "
            f"{self.padding:.0%} padding. Memory: {_size(self.memory)} ({parts}, {_size(RUNTIME)} for the rest){free}."
        )


def forecast(dataset: Dataset, batches: Batches, frozen: Any, state: Any, compiled: Any) -> Forecast:
    """Forecast what a run needs.

    Args:
        dataset: The data.
        batches: Its batches.
        frozen: The frozen weights, or their shapes and dtypes.
        state: The `TrainState`, or its shapes and dtypes.
        compiled: The compiled step.
    """
    analysis, weights, state_bytes = compiled.memory_analysis(), tree_bytes(frozen), tree_bytes(state)
    working = 0
    if analysis is not None:
        batch = max(0, int(analysis.argument_size_in_bytes) - weights - state_bytes)  # images are most of it
        working = int(analysis.temp_size_in_bytes) + 2 * batch  # on the device, and as it is read
    tokens, learned = count_tokens(dataset, batches)
    return Forecast(
        weights=weights,
        state=state_bytes,
        working=working,
        tokens=tokens,
        learned=learned,
        padding=batches.padding,
        steps=len(batches),
        epochs=len(batches) / batches.steps_per_epoch,
        free=memory.available(),
    )


def count_tokens(dataset: Dataset, batches: Batches) -> tuple[int, int]:
    """Return the number of tokens and of labeled tokens of all steps; the last id of a document is only a target."""
    epochs = len(batches) / batches.steps_per_epoch
    size = dataset.statistics
    return round((size.tokens - size.documents) * epochs), round(size.learned * epochs)


def require(need: Forecast, out: Path) -> None:
    """Check that memory and disk space suffice.

    Raises:
        GemwrightError: They do not.
    """
    needed = need.weights + need.state + need.working  # the runtime is in memory already
    if need.free is not None and needed > need.free:
        raise GemwrightError(
            f"Training needs {_size(needed)} of memory ({_size(need.weights)} of weights, {_size(need.state)} of "
            f"trained weights and the optimizer, {_size(need.working)} of activations), and {_size(need.free)} are "
            "free; use shorter sequences, a smaller batch size, more accumulation or a smaller model."
        )
    free = free_bytes(out)
    if need.state > free:
        raise GemwrightError(
            f"A checkpoint takes about {_size(need.state)} and {_size(free)} are free on the disk of {out}; make room "
            "or give a folder on another disk."
        )


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a device of the arrays of a tree, or of the arrays that its shapes and dtypes describe."""

    def own(leaf: Any) -> tuple[int, ...]:
        return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)

    return sum(math.prod(own(leaf)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def peak_memory() -> int:
    """Return the most memory so far in bytes: of the device, or of the process on a CPU."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size(nbytes: int) -> str:
    return next(f"{nbytes / unit:.1f} {name}" for unit, name in _units() if nbytes >= unit or unit == 1000)


def _units() -> Iterator[tuple[int, str]]:
    yield from ((10**9, "GB"), (10**6, "MB"), (1000, "kB"))
