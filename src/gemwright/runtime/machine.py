"""Machine facts that need no JAX, whose import takes most of a second."""

import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
"""The root of the file system with `proc` and `sys/fs/cgroup`."""
THREADS = "PJRT_NPROC"
"""The environment variable from which XLA takes the size of its CPU thread pool, which the native kernels use too."""


def free_memory() -> int | None:
    """Return the bytes of memory available without swapping, to the machine or to the container; None if unknown."""
    try:
        with (ROOT / "proc/meminfo").open() as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return min([int(line.split()[1]) * 1024, *_free_in_groups()])


def cores() -> int:
    """Return the number of cores that the process may use: its CPU affinity, or the container's quota if that is less.

    A quota of a fraction is rounded up.
    """
    return max(1, min([_affinity(), *map(math.ceil, _quotas())]))


def set_threads(count: int | None = None) -> None:
    """Set the number of threads that compute on the CPU; call it before JAX computes anything.

    Args:
        count: The number. Unless it or the environment variable `PJRT_NPROC` is given, it is `cores()`.
    """
    if count is not None:
        os.environ[THREADS] = str(count)
    elif cores() < _affinity():  # XLA knows the affinity, and not the quota
        os.environ.setdefault(THREADS, str(cores()))


def expects_cpu() -> bool:
    """Return whether JAX is likely to use the CPU: it is set to, or no plugin of another device is installed."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_in_groups() -> Iterator[int]:
    """Yield the free bytes of each control group of the process that has a limit.

    Pages of files that were not read lately are freed on demand, so they count as free, as in `MemAvailable`.
    Source: docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    versions = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for group in _groups("memory"):
        for limit, used, inactive in versions:
            bound, usage = _number(group / limit), _number(group / used)
            if bound is not None and usage is not None:
                statistics = dict(line.split() for line in _read(group / "memory.stat").splitlines())
                yield max(0, bound - usage + int(statistics.get(inactive, 0)))


def _quotas() -> Iterator[float]:
    """Yield the number of cores of each control group of the process that has a quota."""
    for group in _groups("cpu"):
        quota, *period = _read(group / "cpu.max").split() or ["max"]
        if not period:
            quota, period = _read(group / "cpu.cfs_quota_us"), [_read(group / "cpu.cfs_period_us")]
        if quota.strip().isdigit() and int(quota) and period[0].strip().isdigit():
            yield int(quota) / int(period[0])


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control group of the process and of those around it, of both versions.

    In a container the paths of `/proc/self/cgroup` may be those of the machine, and the container's group is mounted at
    the root; then only the root exists.
    """
    mount = ROOT / "sys/fs/cgroup"
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        bases = [mount / controller, mount / controllers] if controllers else [mount]
        for base in filter(Path.is_dir, dict.fromkeys(bases)):
            inside = base / path.lstrip("/")
            yield from (group for group in (inside, *inside.parents) if group.is_relative_to(base) and group.is_dir())


def _number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
