"""The published speeds and memory of accelerators, in one table, and machines made of them."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gemwright.errors import GemwrightError
from gemwright.runtime import machine


@dataclass(frozen=True)
class Chip:
    """An accelerator, or this machine.

    Attributes:
        title: Its name.
        memory: Bytes of memory.
        flops: Floating-point operations a second in bfloat16, dense.
        bandwidth: Bytes a second of its memory.
        link: Bytes a second in one direction to the chips beside it, over all links; 0 if it has none.
        source: Where the numbers are published.
        topology: Name of its slices in JAX's ahead-of-time compilation; none for other chips than TPUs.
        network: Bytes a second of a chip's share of the network between slices.
        itemsize: Bytes of an activation: 2 in bfloat16, 4 in float32.
    """

    title: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    source: str
    topology: str | None = None
    network: float = 3.1e9
    itemsize: int = 2


_TPU, _NVIDIA = "docs.cloud.google.com/tpu/docs", "nvidia.com data sheet"
CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "v4": Chip("TPU v4", 32 * 2**30, 275e12, 1.2e12, 150e9, f"{_TPU}/v4", "v4"),
        "v5e": Chip("TPU v5e", 15.75 * 2**30, 197e12, 819e9, 200e9, f"{_TPU}/v5e", "v5e"),
        "v5p": Chip("TPU v5p", 95e9, 459e12, 2765e9, 600e9, f"{_TPU}/v5p", "v5p"),
        "v6e": Chip("TPU v6e", 31.25 * 2**30, 918e12, 1638e9, 400e9, f"{_TPU}/v6e", "v6e"),
        "a100": Chip("NVIDIA A100 80GB SXM", 80e9, 312e12, 2039e9, 300e9, f"{_NVIDIA}, A100"),
        "h100": Chip("NVIDIA H100 SXM", 80e9, 989e12, 3350e9, 450e9, f"{_NVIDIA}, H100"),
        "h200": Chip("NVIDIA H200 SXM", 141e9, 989e12, 4800e9, 450e9, f"{_NVIDIA}, H200"),
        "l4": Chip("NVIDIA L4", 24e9, 121e12, 300e9, 0, f"{_NVIDIA}, L4"),
        "rtx4090": Chip("NVIDIA GeForce RTX 4090", 24e9, 165e12, 1008e9, 0, f"{_NVIDIA}, Ada architecture"),
    }
)
"""Accelerators by the names that `--on` takes. A TPU's memory is what its compiler lets a program use."""


@dataclass(frozen=True)
class Machine:
    """Equal chips.

    Attributes:
        chip: The chip.
        shape: Numbers of chips along the axes of a slice; of one axis for GPUs.
        slices: Number of slices.
    """

    chip: Chip
    shape: tuple[int, ...] = (1,)
    slices: int = 1

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape) * self.slices


def parse_machine(text: str) -> Machine:
    """Return the machine of text such as `this`, `h100`, `h100:8`, `v5e:16x16` or `v5e:16x16x4` (four slices of v5e).

    Raises:
        GemwrightError: The chip is unknown, or the numbers are not valid.
    """
    name, _, counts = text.partition(":")
    if name == "this" and not counts:
        return Machine(_describe_this())
    if name not in CHIPS:
        raise GemwrightError(f"The machine {text!r:.60} is not known; use this, or one of {', '.join(CHIPS)}.")
    parts = counts.split("x") if counts else ["1"]
    if not all(part.isdecimal() and 0 < int(part) < 1 << 20 for part in parts):
        raise GemwrightError(f"The machine {text!r:.60} has no valid number of chips; write it as v5e:16x16 or h100:8.")
    shape = tuple(map(int, parts))
    axes = _SLICE_AXES.get(name, 1)
    return Machine(CHIPS[name], shape[:axes], math.prod(shape[axes:]))


_SLICE_AXES = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
"""Axes of a slice by chip: two for a torus of two dimensions; a further number is that of the slices."""


def _describe_this() -> Chip:
    """Measure this machine's speed, and read its memory."""
    from gemwright.plan.measure import measure_bandwidth, measure_flops

    memory = machine.free_memory() or 0
    return Chip(
        f"this machine ({os.cpu_count()} cores)",
        memory,
        measure_flops(),
        measure_bandwidth(),
        0,
        "measured",
        itemsize=4,
    )
