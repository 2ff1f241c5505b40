"""What a model will need, said before it is loaded."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike

from gemwright.errors import GemwrightError
from gemwright.model.config import Config
from gemwright.model.spec import parameter_count
from gemwright.model.state import state_bytes

RUNTIME = 800_000_000
"""Bytes that Python, JAX, the compiled programs and a chunk's activations take beside the model."""


@dataclass(frozen=True)
class Forecast:
    """Memory in bytes: the weights, the state of a batch, and copies of weights that the device cannot multiply by."""

    weights: int
    state: int
    copies: int = 0

    @property
    def total(self) -> int:
        """All of it, with the runtime."""
        return self.weights + self.state + self.copies + RUNTIME


def forecast(
    config: Config, dtype: DTypeLike, batch: int = 1, capacity: int = 1024, stored: int | None = None
) -> Forecast:
    """What a model needs with its weights in `dtype` and `batch` sequences of `capacity` tokens.

    `stored` is the size of the weights in the file, where they are kept at their own bits.
    """
    count, size = parameter_count(config), np.dtype(dtype).itemsize
    # On a CPU, XLA multiplies in float32, and a program makes itself a float32 copy of all narrower weights.
    copies = count * 4 if size < 4 and stored is None and jax.default_backend() == "cpu" else 0
    state = state_bytes(config, batch, min(capacity, config.context), dtype)
    return Forecast(count * size if stored is None else stored, state, copies)


def available() -> int | None:
    """Bytes that the device has free, None where that is not known."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            free = next(line for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return int(free.split()[1]) * 1024


def require(need: Forecast, name: str) -> None:
    """Raise unless that much is free.

    Raises:
        GemwrightError: it is not; the message has the numbers.
    """
    free = available()
    if free is not None and need.total > free:
        raise GemwrightError(
            f"{name} needs {need.total / 1e9:.1f} GB ({need.weights / 1e9:.1f} GB of weights, "
            f"{need.state / 1e9:.1f} GB of state, {(need.copies + RUNTIME) / 1e9:.1f} GB to compute with) "
            f"and {free / 1e9:.1f} GB are free; free some memory, or take a smaller model."
        )
