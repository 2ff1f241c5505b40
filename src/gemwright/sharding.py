"""How arrays are divided among the devices of a mesh.

The axes of every array have names, such as "embed" or "batch"; `RULES` maps them to the axes of the mesh. The sizes of
the mesh's axes choose the kind of parallelism: `data=8` copies the weights to all devices, `fsdp=8` divides them
(ZeRO stage 3), `tensor=8` divides heads and hidden widths, `sequence=8` the tokens of a sequence, and `slice` is the
axis between slices, whose links are the slowest.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gemwright.errors import GemwrightError
from gemwright.typing import Array

TENSOR = "tensor"
"""Axis of a mesh that divides heads and hidden widths, and the rows of packed weights."""
MESH_AXES = ("slice", "data", "fsdp", "sequence", TENSOR)
"""Axes of a mesh, the slowest links first."""
BATCH_AXES = ("slice", "data", "fsdp")
"""Axes of a mesh that divide the sequences of a batch."""
WEIGHT_AXES = ("fsdp", "sequence", TENSOR)
"""Axes of a mesh that divide weights."""
RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "batch": BATCH_AXES,
        "length": ("sequence",),
        "embed": ("fsdp", "sequence"),
        "vision": ("fsdp", "sequence"),
        "recurrent_in": ("fsdp", "sequence"),
        "vocab": (TENSOR,),
        "heads": (TENSOR,),
        "kv_heads": (TENSOR,),
        "hidden": (TENSOR,),
        "vision_out": (TENSOR,),
        "recurrent": (TENSOR,),
        "blocks": (TENSOR,),
    }
)
"""Axes of a mesh by the names of an array's axes; an axis without a rule is not divided."""


def parse_mesh(text: str) -> dict[str, int]:
    """Return the sizes of a mesh's axes from text such as `data=2,fsdp=4`.

    Raises:
        GemwrightError: An axis is unknown or given twice, or a size is not a whole number of at least 1.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in MESH_AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise GemwrightError(
                f"The mesh {text!r:.60} is not valid at {part!r:.40}; give sizes of {', '.join(MESH_AXES)}, such as "
                "data=2,fsdp=4."
            )
        sizes[name] = int(size)
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of devices.

    Args:
        sizes: Sizes of its axes; those that are left out are 1.
        devices: The devices, by default all of all processes.

    Raises:
        GemwrightError: There are more or fewer devices, or the axis `slice` is not the number of their slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes.get(name, 1) for name in MESH_AXES)
    if math.prod(shape) != len(devices):
        given = ",".join(f"{name}={size}" for name, size in sizes.items())
        raise GemwrightError(
            f"The mesh {given} has {math.prod(shape)} devices, and there are {len(devices)}; make their product equal."
        )
    types = (AxisType.Auto,) * len(shape)
    if devices[0].platform != "tpu":  # they are in the order of their machines
        return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=types)
    slices = _group_by_slice(devices)
    if len(slices) > 1 and shape[0] != len(slices):
        raise GemwrightError(f"There are {len(slices)} slices of TPUs; give slice={len(slices)} in the mesh.")
    arranged = [_arrange(shape if len(slices) == 1 else shape[1:], each) for each in slices]
    return Mesh(np.stack(arranged).reshape(shape), MESH_AXES, axis_types=types)


def _arrange(shape: Sequence[int], devices: Sequence[Any]) -> Any:
    """Return the devices of a slice as a mesh whose neighbours are linked; its axes may share one of the slice."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def default_sizes(devices: Sequence[Any]) -> dict[str, int]:
    """Return the sizes of a mesh in which the devices of a slice divide the weights, and all divide the batch."""
    slices = len(_group_by_slice(devices))
    return {"slice": slices, "fsdp": len(devices) // slices}


def _group_by_slice(devices: Sequence[Any]) -> list[list[Any]]:
    """Return the devices of each slice of TPUs; other devices are one."""
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0) if device.platform == "tpu" else 0, []).append(device)
    return list(slices.values())


def make_mesh_from_text(text: str) -> Mesh:
    """Return a mesh of as many of the first devices as its sizes have; see `parse_mesh`.

    Raises:
        GemwrightError: The text is not valid, or there are fewer devices.
    """
    sizes, devices = parse_mesh(text), jax.devices()
    count = math.prod(sizes.values())
    return make_mesh(sizes, devices[:count] if jax.process_count() == 1 else devices)


def mesh_of(array: Any) -> Mesh | None:
    """Return the mesh among whose devices an array is divided; None if it is on one device, or is being traced."""
    if isinstance(array, Tracer) or not isinstance(array, jax.Array):
        return None
    found = array.sharding.mesh if isinstance(array.sharding, NamedSharding) else None
    return found if isinstance(found, Mesh) else None


def use(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Return a context in which arrays are divided among the devices of a mesh; None for no mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def divide(axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """Return which axes of the mesh divide each axis of an array.

    An axis is divided if its size is a multiple; vectors and scalars are copied to all devices.

    Args:
        axes: Names of the array's axes.
        shape: Their sizes.
        sizes: Sizes of the mesh's axes.
    """
    used: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        names: list[str] = []
        for name in RULES.get(axis or "", ()):
            count = math.prod(sizes[n] for n in [*names, name])
            if name not in used and sizes[name] > 1 and size % count == 0:
                names.append(name)
        used.update(names)
        parts.append(tuple(names) or None)
    return PartitionSpec(*parts)


def mesh_axes(divided: PartitionSpec) -> tuple[str, ...]:
    """Return the axes of the mesh that divide an array."""
    parts = ((part,) if isinstance(part, str) else part or () for part in divided)
    return tuple(name for part in parts for name in part)


def sharding_of(axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding | None:
    """Return the sharding of a weight or a batch in the current mesh; None without a mesh.

    Args:
        axes: Names of its axes; `repeats` does not count as one that makes a matrix.
        shape: Their sizes.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return None
    matrix = len([axis for axis in axes if axis != "repeats"]) > 1
    return NamedSharding(mesh, divide(axes, shape, mesh.shape) if matrix else PartitionSpec())


def replicated() -> NamedSharding | None:
    """Return the sharding of an array that every device has a copy of; None without a mesh."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else NamedSharding(mesh, PartitionSpec())


def constrain(x: Array, *axes: str | None) -> Array:
    """Return activations, divided by the names of their axes; as they are without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, divide(axes, x.shape, mesh.shape))


def place(array: Any, *axes: str | None) -> Array:
    """Copy an array that all processes have to the devices that hold parts of it."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.numpy.asarray(array)
    return put(array, NamedSharding(mesh, divide(axes, array.shape, mesh.shape)))


def put(array: Any, place: NamedSharding | None) -> Array:
    """Copy an array that all processes have to a sharding; to the default device if it is None."""
    if place is None:
        return jax.device_put(array)

    def part(index: Any) -> Any:
        found = array[index]
        # A CPU device may keep the memory that it is given: a copy lets go of the rest of the array.
        return found if found.size == array.size else found.copy()

    return jax.make_array_from_callback(array.shape, place, part)
