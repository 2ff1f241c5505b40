"""What a model will need, said before it is loaded."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike

from gemwright.errors import GemwrightError
from gemwright.model.config import Config
from gemwright.model.spec import parameter_count
from gemwright.model.state import state_bytes

RUNTIME = 400_000_000
"""Bytes that Python, JAX, the compiled programs and a chunk's activations take beside the model."""


@dataclass(frozen=True)
class Forecast:
    """Memory in bytes: the weights, the state of a batch, and the runtime."""

    weights: int
    state: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + RUNTIME


def forecast(config: Config, dtype: DTypeLike, batch: int = 1, capacity: int = 1024) -> Forecast:
    """What a model needs with its weights in `dtype` and `batch` sequences of `capacity` tokens."""
    weights = parameter_count(config) * np.dtype(dtype).itemsize
    return Forecast(weights, state_bytes(config, batch, min(capacity, config.context), dtype))


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
            f"{need.state / 1e9:.1f} GB of state) and {free / 1e9:.1f} GB are free; "
            "take a smaller model, or --dtype bfloat16."
        )
