"""The floating-point operations of training, counted and measured."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.data import Batch
from gemwright.model.config import Attention, Config
from gemwright.train import lora
from gemwright.train.recipe import Recipe


def count(config: Config, recipe: Recipe, batch: Batch) -> int:
    """Return the number of floating-point operations of the model for a batch.

    They are those of matrix products: of the layers for every token, of the head for every labeled token, and of
    attention for every pair of tokens. The gradient costs as much again with respect to activations, and again with
    respect to weights that are trained. Padding and what is computed again do not count, nor do low-rank updates.
    """
    passes = 3 if recipe.method == "full" else 2
    weights = sum(repeats * outputs * inputs for repeats, outputs, inputs in lora.targets(config).values())
    tokens, learned = int(np.sum(batch.segments > 0)), int(np.sum(batch.learned))
    products = 2 * passes * (weights * tokens + config.vocab * config.width * learned)
    lengths = _lengths(batch.segments)
    attention = sum(
        4 * layer.mixer.heads * layer.mixer.head_dim * _pairs(lengths, layer.mixer.window)
        for layer in config.layers
        if isinstance(layer.mixer, Attention)
    )
    images = int(np.sum(batch.tokens < 0)) // config.vision.tokens if config.vision else 0
    return products + 3 * attention + images * _count_image(config, passes=3 if recipe.method == "full" else 1)


def _count_image(config: Config, passes: int) -> int:
    """Return the number of operations of the vision tower for an image; one that is frozen has no gradient."""
    vision = config.vision
    if vision is None:
        return 0
    E, patches = vision.width, vision.grid**2
    layer = patches * (4 * E * E + 2 * E * vision.hidden) + 2 * patches**2 * E
    ends = patches * 3 * vision.patch**2 * E + vision.tokens * E * config.width
    return 2 * passes * (vision.depth * layer + ends)


def _lengths(segments: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the number of tokens of each document of a batch."""
    counts = [np.bincount(row)[1:] for row in segments]
    return np.concatenate(counts).astype(np.int64)


def _pairs(lengths: NDArray[np.int64], window: int | None) -> int:
    """Return the number of pairs of a token and one that it attends to."""
    full = lengths * (lengths + 1) // 2
    if window is None:
        return int(full.sum())
    beyond = np.maximum(lengths - window, 0)
    return int((full - beyond * (beyond + 1) // 2).sum())


def measure_peak(dtype: Any) -> float:
    """Return the floating-point operations per second of the product of two large matrices on this device."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    durations: list[float] = []
    for _ in range(3):
        begin = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        durations.append(time.perf_counter() - begin)
    return 2 * size**3 / min(durations)
