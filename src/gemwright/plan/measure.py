"""The speed of this machine, measured."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gemwright.train.flops import measure_peak

BYTES = 1 << 28
"""Size of the array that is read, in bytes."""


def measure_flops() -> float:
    """Return the floating-point operations per second of a large product in float32."""
    return measure_peak("float32")


def measure_bandwidth() -> float:
    """Return the bytes per second at which the memory of the default device is read."""
    array = jnp.ones(BYTES // 4, jnp.float32)
    return BYTES / _fastest(jax.jit(jnp.sum), array)


def _fastest(function: Callable[[jax.Array], jax.Array], array: jax.Array) -> float:
    """Return the seconds of the fastest of some calls, after one that compiles."""
    durations: list[float] = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(function(array))
        durations.append(time.perf_counter() - begin)
    return min(durations[1:])
