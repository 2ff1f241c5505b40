"""Random queries, keys and values of packed documents, and attention among them by its plain definition."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemwright.kernels import choice
from gemwright.kernels.self_attention import attend_uncached
from gemwright.typing import Array

FORWARD, GRADIENT = 1e-5, 1e-4
"""Tolerances of float32 sums in another order: absolute, of results of the order of 1; and of a gradient's norm."""


@dataclass(frozen=True)
class Case:
    """The sizes of an attention; the documents have no common boundary with the kernel's blocks."""

    length: int = 256
    heads: int = 4
    kv_heads: int = 2
    width: int = 128
    window: int | None = None
    cap: float | None = None
    batch: int = 2
    packed: bool = True

    @property
    def segments(self) -> np.ndarray:
        """Documents of each sequence; the last 20 tokens are padding."""
        index = np.arange(self.length)
        rows = [1 + (index >= self.length * (row + 1) // (self.batch + 2)) for row in range(self.batch)]
        found = np.stack(rows) if self.packed else np.ones((self.batch, self.length), int)
        found[:, -20:] = 0
        return found.astype(np.int32)

    @property
    def positions(self) -> np.ndarray:
        """Positions in the document; -1 for padding."""
        index, segments = np.arange(self.length), self.segments
        firsts = np.where(np.diff(segments, prepend=-1) != 0, index, 0)
        return np.where(segments > 0, index - np.maximum.accumulate(firsts, axis=1), -1).astype(np.int32)

    def draw(self) -> tuple[Array, ...]:
        """Return queries, keys, values, and a cotangent that is 0 in padding."""
        random = np.random.default_rng(0)
        counts = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        *arrays, cotangent = (random.normal(size=(self.batch, self.length, n, self.width)) for n in counts)
        valid = self.segments[:, :, None, None] > 0
        return tuple(jnp.asarray(array, jnp.float32) for array in (*arrays, cotangent * valid))

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        """Attend as gemwright does; a rotation by no angle."""
        half = self.width // 2
        rotation = jnp.stack([jnp.ones((half,)), jnp.zeros((half,))])
        rotation = jnp.broadcast_to(rotation, (self.batch, self.length, 2, half))
        where = jnp.asarray(self.positions), rotation, None, jnp.asarray(self.segments)
        return attend_uncached(q, k, v, *where, window=self.window, scale=self.width**-0.5, cap=self.cap, eps=1e-6)

    def define(self, q: Array, k: Array, v: Array) -> Array:
        """Attend by the definition."""
        index = np.arange(self.length)
        distance = index[:, None] - index
        mask = (distance >= 0) & (self.segments[:, :, None] == self.segments[:, None])
        if self.window is not None:
            mask &= distance < self.window
        k, v = (jnp.repeat(x, self.heads // self.kv_heads, axis=2) for x in (k, v))
        with jax.default_matmul_precision("highest"):
            scores = jnp.einsum("btnh,bsnh->bnts", q, k) / self.width**0.5
            scores = scores if self.cap is None else self.cap * jnp.tanh(scores / self.cap)
            scores = jnp.where(mask[:, None], scores, -jnp.inf)
            return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v)

    def run(self, function: Any, impl: choice.Impl = "auto") -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the results of real tokens, and the gradients of queries, keys and values."""
        *arrays, cotangent = self.draw()

        def both(*arrays: Array) -> tuple[Array, tuple[Array, ...]]:
            mixed, pull = jax.vjp(function, *arrays)
            return mixed, pull(cotangent)

        with choice.use(impl):
            mixed, gradients = jax.jit(both)(*arrays)
        return np.asarray(mixed)[self.segments > 0], [np.asarray(gradient) for gradient in gradients]


def differences(found: Any, expected: Any) -> tuple[float, float]:
    """Return the largest absolute difference of results, and the largest relative one of gradients."""
    (mixed, gradients), (mixed_expected, gradients_expected) = found, expected
    relative = [
        float(np.linalg.norm(gradient - other) / np.linalg.norm(other))
        for gradient, other in zip(gradients, gradients_expected, strict=True)
    ]
    return float(np.abs(mixed - mixed_expected).max()), max(relative)
