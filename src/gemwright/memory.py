"""Forecast the memory that a model needs, before it is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemwright import sharding
from gemwright.errors import GemwrightError
from gemwright.families import find_family
from gemwright.model.config import Config
from gemwright.model.params import parameter_count
from gemwright.model.state import state_bytes
from gemwright.precision import Precision, activation_dtype, cache_dtype
from gemwright.runtime import machine

RUNTIME = 800_000_000
"""Bytes that Python, JAX, compiled programs and the activations of a chunk take in addition to the model."""


@dataclass(frozen=True)
class Forecast:
    """Memory in bytes.

    Attributes:
        weights: The weights.
        state: The KV caches and recurrent states of a batch.
        copies: Float32 copies of weights in a dtype that the device does not multiply.
        images: Activations of the vision tower, and of a prompt that must be prefilled in one chunk.
    """

    weights: int
    state: int
    copies: int = 0
    images: int = 0

    @property
    def total(self) -> int:
        """All memory, with the runtime."""
        return self.weights + self.state + self.working

    @property
    def working(self) -> int:
        """Memory of the computation, with the runtime."""
        return self.copies + self.images + RUNTIME


def forecast(
    config: Config, precision: Precision, batch: int = 1, capacity: int = 1024, stored: int | None = None
) -> Forecast:
    """Forecast the memory of a model in a precision and of `batch` sequences of `capacity` tokens.

    Args:
        config: The model.
        precision: Its precision.
        batch: Number of sequences.
        capacity: Tokens per sequence.
        stored: Size in bytes of the weights if they keep their stored format; required if the precision is `stored`.
    """
    state = state_bytes(config, batch, min(capacity, config.max_length), cache_dtype(precision))
    if stored is not None:
        return Forecast(stored, state, images=_image_bytes(config))
    assert precision != "stored"
    count, size = parameter_count(config), jnp.dtype(activation_dtype(precision)).itemsize
    # On a CPU, XLA multiplies in float32, and a program makes a float32 copy of all narrower weights.
    copies = count * 4 if size < 4 and jax.default_backend() == "cpu" else 0
    return Forecast(count * size, state, copies, _image_bytes(config))


def _image_bytes(config: Config) -> int:
    """Return the bytes of activations: the tower computes all patches at once, and a prefix is one chunk."""
    vision = config.vision
    if vision is None:
        return 0
    tower = 20 * vision.grid**2 * vision.hidden  # measured at 896 pixels: five times the activations of an MLP
    widest = max(layer.mlp.hidden for layer in config.layers)
    # A gated MLP holds its hidden width three times, in float32.
    return tower + (12 * (vision.tokens + 512) * widest if find_family(config).image_prompt == "prefix" else 0)


def available(devices: Sequence[Any] = ()) -> int | None:
    """Return the free memory of devices together in bytes, by default that of the first; None if unknown."""
    free = 0
    for device in devices or jax.local_devices()[:1]:
        statistics = device.memory_stats()
        if not statistics or "bytes_limit" not in statistics:
            return machine.free_memory()
        free += statistics["bytes_limit"] - statistics["bytes_in_use"]
    return free


def require(need: Forecast, name: str, mesh: Mesh | None = None) -> None:
    """Check that enough memory is free on the first device, or on those of this process in a mesh.

    Raises:
        GemwrightError: It is not; the message has the numbers.
    """
    total, devices = need.total, list[Any]()
    if mesh is not None:
        devices = mesh.local_devices
        copies = len(devices) / math.prod(mesh.shape[axis] for axis in sharding.WEIGHT_AXES)
        working = need.working * (1 if devices[0].platform == "cpu" else len(devices))
        total = int((need.weights + need.state) * copies) + working
    free = available(devices)
    if free is not None and total > free:
        raise GemwrightError(
            f"{name} needs {total / 1e9:.1f} GB ({need.weights / 1e9:.1f} GB of weights, "
            f"{need.state / 1e9:.1f} GB of state, {need.working / 1e9:.1f} GB to compute with) "
            f"and {free / 1e9:.1f} GB are free; free some memory or use a smaller model."
        )
