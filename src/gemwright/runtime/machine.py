"""Machine facts that need no JAX, whose import takes most of a second."""

import importlib.util
import os
from pathlib import Path


def free_memory() -> int | None:
    """Return the bytes of memory available without swapping, or None if unknown."""
    try:
        with Path("/proc/meminfo").open() as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def expects_cpu() -> bool:
    """Return whether JAX is likely to use the CPU: it is set to, or no plugin of another device is installed."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def set_threads(count: int) -> None:
    """Limit this process to some of the CPU cores that it may use; call it before JAX is imported.

    XLA and the kernels of gemwright-native start as many threads as there are cores in the process's affinity.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
