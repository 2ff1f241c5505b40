"""Load weights from a file onto the device: check names and shapes, then read in chunks of rows.

Memory never holds more than the loaded model and a few chunks.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gemwright import sharding, tree
from gemwright.checkpoint.arena import Arena, aligned
from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.names.mapping import TensorMapping, check, plain_name
from gemwright.checkpoint.updates import Updates, fit, replacement, sum_updates
from gemwright.kernels import native, panels
from gemwright.kernels.native import Repacked, encodings
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights, ParamSpec, param_specs
from gemwright.precision import Precision, activation_dtype
from gemwright.weights import DividedTensor, LoraTensor, PackedTensor, PanelTensor, Weight, to_matrix

READ_CHUNK = 1 << 21
"""Number of elements read per task: few enough for a core's cache, enough to hide the overhead of a task."""
SIXTEEN_BIT_ACTIVATIONS = (".down", ".q", ".k", ".v")
"""Suffixes of the paths of weights whose inputs have 16 bits, as the head's have: 8 bits lose most accuracy here."""

Progress = Callable[[int, int], None]
"""A callback with the number of bytes read and the total."""


def load_weights(
    file: TensorFile,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    precision: Precision,
    progress: Progress = lambda done, total: None,
    repacked: Mapping[str, Repacked] | None = None,
    updates: Sequence[Updates] = (),
) -> ModelWeights:
    """Load the weights of a mapping onto the default device, or straight into their parts in the current mesh.

    Args:
        file: The file.
        mapping: The tensor of each weight in the file.
        config: The model.
        precision: The precision of the weights; `stored` keeps matrices in their stored format, for the native
            kernels. Our own quantized matrices always keep theirs, and the precision is that of their activations.
        progress: Called after each weight.
        repacked: Matrices that were repacked before, by name of the tensor in the file.
        updates: Updates of adapters.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape (before anything is read), or unreadable.
    """
    dtype, specs = jnp.dtype(activation_dtype(precision)), param_specs(config)
    leaves: dict[str, Weight] = {}
    for path, param in tree.flatten(specs).items():
        if (whole := replacement(path, updates)) is not None:
            leaves[path] = _put(fit(whole, param.shape).astype(dtype), param)
    leaves |= dict(_leaves(file, mapping, config, precision, progress, repacked or {}, leaves.keys()))
    params = tree.flatten(specs)
    return tree.build(specs, {path: _update(path, leaf, params[path], updates, dtype) for path, leaf in leaves.items()})


def _put(array: NDArray[Any], param: ParamSpec) -> jax.Array:
    """Copy a weight to the device, or its parts to those of the current mesh."""
    return sharding.put(array, sharding.sharding_of(param.axes, param.shape))


def _put_packed(weight: PackedTensor | PanelTensor, rows: int) -> Weight:
    """Copy the bytes of a packed weight from the host to the device, or its parts to those of the current mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return replace(weight, packed=jax.device_put(weight.packed))
    return DividedTensor.to_devices(weight, rows, mesh)


def _update(path: str, leaf: Weight, param: ParamSpec, updates: Sequence[Updates], dtype: jnp.dtype) -> Weight:
    """Return a weight with the low-rank updates of adapters, whose factors have the dtype of activations."""

    def matrix() -> NDArray[np.float32]:
        outputs = next(len(update.low_rank[path].b) for update in updates if path in update.low_rank)
        return np.asarray(to_matrix(leaf, outputs), np.float32)

    found = sum_updates(path, updates, matrix)
    if found is None:
        return leaf
    a, b, gain = found
    inputs = next(n for n in range(len(param.shape)) if math.prod(param.shape[n:]) == a.shape[-1])
    return LoraTensor(
        leaf,
        sharding.put(np.asarray(a, dtype), sharding.sharding_of((None, param.axes[inputs]), a.shape)),
        sharding.put(np.asarray(b, dtype), sharding.sharding_of((param.axes[0], None), b.shape)),
        None if gain is None else sharding.put(np.asarray(gain), sharding.replicated()),
    )


def _leaves(
    file: TensorFile,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    precision: Precision,
    progress: Progress,
    repacked: Mapping[str, Repacked],
    skipped: Set[str],
) -> Iterator[tuple[str, Weight]]:
    """Yield weights by path: matrices in their stored format if the kernels support it, all others as plain arrays."""
    names = checked_names(file, mapping)
    total, done = _total(file, mapping, names), 0
    native_encodings = encodings() if precision == "stored" else ()
    plain = jnp.dtype(activation_dtype(precision))
    # Parts are copies: the memory of a whole weight is freed after it.
    is_divided = not jax.sharding.get_mesh().empty
    allocate = aligned if is_divided else Arena().allocate
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, param in tree.flatten(param_specs(config)).items():
            if path in skipped:
                continue
            tensor, name = mapping[path], names[mapping[path].name]
            info = file.tensors[name]
            as_ours = not tensor.index and tensor.permute is None
            head = path == ("embed" if config.tied else "head")
            activation_bits = 16 if head or path.endswith(SIXTEEN_BIT_ACTIVATIONS) else 8
            rows = tensor.shape[0]
            if param.linear and as_ours and info.panels:
                raw = file.raw(name)[: panels.packed_bytes(info.encoding, *tensor.shape)]
                yield path, _put_packed(_panels(raw, info.encoding, param.shape, precision, activation_bits), rows)
            elif param.linear and as_ours and name in repacked and info.shape == tensor.shape:
                yield path, PackedTensor.to_device(repacked[name], param.shape, activation_bits=activation_bits)
            elif param.linear and as_ours and info.encoding in native_encodings:
                raw = file.raw(name)[: info.nbytes // info.shape[0] * rows]
                shape, release = (rows, math.prod(tensor.shape[1:])), functools.partial(file.release, name)
                # The layout for heads has no panels, which a mesh divides.
                repacked_now = native.repack(
                    info.encoding, raw, shape, allocate=allocate, on_rows_read=release, head=head and not is_divided
                )
                packed: Any = repacked_now.packed
                yield path, _put_packed(PackedTensor(packed, repacked_now.layout, param.shape, activation_bits), rows)
            else:
                yield path, _put(_read(pool, allocate, file, name, tensor, param.shape, plain), param)
            done += _nbytes(file, tensor, name)
            progress(done, total)


def _panels(
    packed: Any, encoding: str, shape: tuple[int, ...], precision: Precision, activation_bits: int
) -> PackedTensor | PanelTensor:
    """Return a weight of the panels of a mapped file, which a CPU device uses without a copy."""
    if precision == "stored":
        return PackedTensor(packed, encoding, shape, activation_bits)
    return PanelTensor(packed, encoding, shape, jnp.dtype(precision))


def read_weights(
    file: TensorFile,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    dtype: DTypeLike,
    progress: Progress = lambda done, total: None,
    order: Iterable[str] | None = None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Iterate over weights, each as its path and a host array in our shape.

    Args:
        file: The file.
        mapping: The tensor of each weight in the file.
        config: The model.
        dtype: Dtype of the arrays.
        progress: Called after each weight.
        order: Paths in the order to read; by default that of the tree.

    Raises:
        CheckpointError: As for `load_weights`.
    """
    names = checked_names(file, mapping)
    total = _total(file, mapping, names)

    def read() -> Iterator[tuple[str, NDArray[Any]]]:
        done = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            params = tree.flatten(param_specs(config))
            for path in params if order is None else order:
                tensor = mapping[path]
                name = names[tensor.name]
                yield path, _read(pool, aligned, file, name, tensor, params[path].shape, np.dtype(dtype))
                done += _nbytes(file, tensor, name)
                progress(done, total)

    return read()  # this function is not a generator, so that it checks at once


def checked_names(file: TensorFile, mapping: Mapping[str, TensorMapping]) -> dict[str, str]:
    """Return the file's name of each tensor by that of the mapping, after checking that the file has exactly those.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape.
    """
    own = {plain_name(name): name for name in file.tensors}
    if twice := set(file.tensors).difference(own.values()):
        raise file_error(file.path, f"tensor {min(twice)} appears under two names")
    check(mapping, {plain: file.tensors[name].shape for plain, name in own.items()}, str(file.path))
    return {tensor.name: own[plain_name(tensor.name)] for tensor in mapping.values()}


def _total(file: TensorFile, mapping: Mapping[str, TensorMapping], names: Mapping[str, str]) -> int:
    return sum(_nbytes(file, tensor, names[tensor.name]) for tensor in mapping.values())


def _nbytes(file: TensorFile, tensor: TensorMapping, name: str) -> int:
    """Return the size of a weight in the file in bytes: its part of a tensor of stacked weights."""
    info = file.tensors[name]
    return info.nbytes // math.prod(info.shape[: len(tensor.index)])


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of the first axis with about `READ_CHUNK` elements each."""
    rows = max(1, READ_CHUNK // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _read(
    pool: ThreadPoolExecutor,
    allocate: Callable[[int], NDArray[np.uint8]],
    file: TensorFile,
    name: str,
    tensor: TensorMapping,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    out = allocate(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    if tensor.index or tensor.permute is not None:
        values = file.read(name)[tensor.index]
        values = values if tensor.permute is None else values.transpose(tensor.permute)
        with np.errstate(over="ignore"):  # values too large for the dtype become infinite
            out.reshape(values.shape)[...] = values
        file.release(name)
        return out
    flat = out.reshape(tensor.shape)

    def copy(rows: slice) -> None:
        values = file.read_rows(name, rows.start, rows.stop)
        with np.errstate(over="ignore"):  # values too large for the dtype become infinite
            flat[rows] = values - np.float32(tensor.offset) if tensor.offset else values
        file.release(name)

    parts = list(row_chunks(tensor.shape))
    list(map(copy, parts) if len(parts) == 1 else pool.map(copy, parts))
    return out
