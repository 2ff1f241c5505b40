"""What a model will need, said before it is loaded."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike

from gemwright.errors import GemwrightError
from gemwright.model.config import Config
from gemwright.model.params import parameter_count
from gemwright.model.state import state_bytes, state_dtype
from gemwright.runtime import machine

RUNTIME = 800_000_000
"""Bytes that Python, JAX, the compiled programs and a chunk's activations take beside the model."""


@dataclass(frozen=True)
class Forecast:
    """Memory in bytes.

    Attributes:
        weights: The weights.
        state: What a batch of sequences leaves behind.
        copies: Copies of weights that the device cannot multiply by.
        pictures: Activations of a picture, and of the prompt that must be taken in with it at once.
    """

    weights: int
    state: int
    copies: int = 0
    pictures: int = 0

    @property
    def total(self) -> int:
        """All of it, with the runtime."""
        return self.weights + self.state + self.working

    @property
    def working(self) -> int:
        """What it takes to compute, with the runtime."""
        return self.copies + self.pictures + RUNTIME


def forecast(
    config: Config, dtype: DTypeLike | None, batch: int = 1, capacity: int = 1024, stored: int = 0
) -> Forecast:
    """What a model needs with its weights in `dtype` and `batch` sequences of `capacity` tokens.

    `stored` is the size of weights that are kept at their own bits, as all are where `dtype` is None.
    """
    state = state_bytes(config, batch, min(capacity, config.max_length), state_dtype(dtype))
    if dtype is None or stored:
        return Forecast(stored, state, pictures=_pictures(config))
    count, size = parameter_count(config), np.dtype(dtype).itemsize
    # On a CPU, XLA multiplies in float32, and a program makes itself a float32 copy of all narrower weights.
    copies = count * 4 if size < 4 and jax.default_backend() == "cpu" else 0
    return Forecast(count * size, state, copies, _pictures(config))


def _pictures(config: Config) -> int:
    """The tower works on all patches at once, and a prefix is one chunk; a gated MLP holds its width three times."""
    vision = config.vision
    if vision is None:
        return 0
    tower = 20 * vision.grid**2 * vision.hidden  # as measured at 896 pixels: five times what an MLP holds
    widest = max(layer.mlp.hidden for layer in config.layers)
    return tower + (12 * (vision.tokens + 512) * widest if vision.prefix_lm else 0)


def available() -> int | None:
    """Bytes that the device has free, None where that is not known."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return machine.free_memory()


def require(need: Forecast, name: str) -> None:
    """Raise unless that much is free.

    Raises:
        GemwrightError: it is not; the message has the numbers.
    """
    free = available()
    if free is not None and need.total > free:
        raise GemwrightError(
            f"{name} needs {need.total / 1e9:.1f} GB ({need.weights / 1e9:.1f} GB of weights, "
            f"{need.state / 1e9:.1f} GB of state, {need.working / 1e9:.1f} GB to compute with) "
            f"and {free / 1e9:.1f} GB are free; free some memory, or take a smaller model."
        )
