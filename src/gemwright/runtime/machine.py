"""What is known of the machine without asking JAX, whose import takes most of a second."""

import importlib.util
import os
from pathlib import Path


def free_memory() -> int | None:
    """Bytes that processes can take before others are pushed out, None where that is not known."""
    try:
        with Path("/proc/meminfo").open() as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def expects_cpu() -> bool:
    """Whether JAX will most likely compute on the CPU: it is told to, or nothing else is installed for it."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if wanted:
        return wanted == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
