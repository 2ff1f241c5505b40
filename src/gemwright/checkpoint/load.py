"""Weights from a file to the device: checked by name and shape first, then read in chunks of rows.

At no time does more than the loaded model and a few chunks stand in memory.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.arena import Arena, aligned
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.names.mapping import TensorMapping, check, plain_name
from gemwright.errors import CheckpointError
from gemwright.kernels import native, panels
from gemwright.kernels.native import Repacked, encodings
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights, param_specs
from gemwright.precision import Precision, activation_dtype
from gemwright.weights import PackedTensor, PanelTensor, Weight

CHUNK = 1 << 21
"""Elements read at a time: small enough to stay in a core's cache, large enough to hide the overhead."""
SIXTEEN_BIT_ACTIVATIONS = (".down", ".q", ".k", ".v")
"""Ends of the paths of weights that meet activations of 16 bits, as the head does: 8 would change most here."""

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes in all."""


def load_weights(
    file: TensorFile,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    precision: Precision,
    progress: Progress = lambda done, total: None,
    repacked: Mapping[str, Repacked] | None = None,
) -> ModelWeights:
    """Read the weights that a mapping names, onto the default device.

    Args:
        file: Where they are.
        mapping: Where each lies in the file.
        config: The model.
        precision: Precision of the weights; `stored` keeps matrices in their stored format, for the native kernels.
            Our own quantized matrices always keep theirs, and the precision is that of their activations.
        progress: Called as the reading goes on.
        repacked: What was rearranged before, by name of the tensor in the file.

    Raises:
        CheckpointError: a tensor is missing, unexpected or mis-shaped (before anything is read), or unreadable.
    """
    return tree.build(param_specs(config), dict(_leaves(file, mapping, config, precision, progress, repacked or {})))


def _leaves(
    file: TensorFile,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    precision: Precision,
    progress: Progress,
    repacked: Mapping[str, Repacked],
) -> Iterator[tuple[str, Weight]]:
    """Matrices at their own bits where they can be multiplied so and lie in rows as ours do; all else plain arrays."""
    names = _checked_names(file, mapping)
    total, done = _total(file, mapping, names), 0
    known = encodings() if precision == "stored" else ()
    plain, arena = jnp.dtype(activation_dtype(precision)), Arena()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, param in tree.flatten(param_specs(config)).items():
            stored, name = mapping[path], names[mapping[path].name]
            info = file.tensors[name]
            as_ours = not stored.index and stored.permute is None
            head = path == ("embed" if config.tied else "head")
            activation_bits = 16 if head or path.endswith(SIXTEEN_BIT_ACTIVATIONS) else 8
            if param.linear and as_ours and info.panels:
                yield (
                    path,
                    _mapped(
                        file.raw(name), info.encoding, stored, param.shape, precision, activation_bits=activation_bits
                    ),
                )
            elif param.linear and as_ours and name in repacked and info.shape == stored.shape:
                yield path, PackedTensor.to_device(repacked[name], param.shape, activation_bits=activation_bits)
            elif param.linear and as_ours and info.encoding in known:
                raw = file.raw(name)[: info.nbytes // info.shape[0] * stored.shape[0]]
                shape, release = (stored.shape[0], math.prod(stored.shape[1:])), functools.partial(file.release, name)
                made = native.repack(
                    info.encoding, raw, shape, allocate=arena.allocate, on_rows_read=release, head=head
                )
                yield path, PackedTensor.to_device(made, param.shape, activation_bits=activation_bits)
            else:
                yield path, jax.device_put(_read(pool, arena.allocate, file, name, stored, param.shape, plain))
            done += _nbytes(file, stored, name)
            progress(done, total)


def _mapped(
    raw: NDArray[np.uint8],
    encoding: str,
    stored: TensorMapping,
    shape: tuple[int, ...],
    precision: Precision,
    *,
    activation_bits: int,
) -> Weight:
    """Panels as they lie in the mapped file, which a device on the CPU reads where they are."""
    held = jax.device_put(raw[: panels.packed_bytes(encoding, *stored.shape)])
    if precision == "stored":
        return PackedTensor(held, encoding, shape, activation_bits)
    return PanelTensor(held, encoding, shape, jnp.dtype(precision))


def read_weights(
    file: TensorFile,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    dtype: DTypeLike,
    progress: Progress = lambda done, total: None,
    order: Iterable[str] | None = None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Read weights one by one, each as a host array in our shape, by our path; in the order of the tree unless told.

    Raises:
        CheckpointError: as for `load_weights`.
    """
    names = _checked_names(file, mapping)
    total = _total(file, mapping, names)

    def read() -> Iterator[tuple[str, NDArray[Any]]]:
        done = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            params = tree.flatten(param_specs(config))
            for path in params if order is None else order:
                stored = mapping[path]
                name = names[stored.name]
                yield path, _read(pool, aligned, file, name, stored, params[path].shape, np.dtype(dtype))
                done += _nbytes(file, stored, name)
                progress(done, total)

    return read()  # not a generator itself, so that the checks are made at once


def _checked_names(file: TensorFile, mapping: Mapping[str, TensorMapping]) -> dict[str, str]:
    """The file's own name of each tensor by the mapping's; raises unless the file holds just what the mapping names."""
    own = {plain_name(name): name for name in file.tensors}
    if twice := set(file.tensors).difference(own.values()):
        raise CheckpointError(f"{file.path}: tensor {min(twice)} is there under two names; fetch the file again.")
    check(mapping, {plain: file.tensors[name].shape for plain, name in own.items()}, str(file.path))
    return {stored.name: own[plain_name(stored.name)] for stored in mapping.values()}


def _total(file: TensorFile, mapping: Mapping[str, TensorMapping], names: Mapping[str, str]) -> int:
    return sum(_nbytes(file, stored, names[stored.name]) for stored in mapping.values())


def _nbytes(file: TensorFile, stored: TensorMapping, name: str) -> int:
    """Bytes of a weight in the file: its part of a tensor in which several are stacked."""
    info = file.tensors[name]
    return info.nbytes // math.prod(info.shape[: len(stored.index)])


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis that hold about `CHUNK` elements each."""
    rows = max(1, CHUNK // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _read(
    pool: ThreadPoolExecutor,
    allocate: Callable[[int], NDArray[np.uint8]],
    file: TensorFile,
    name: str,
    stored: TensorMapping,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    out = allocate(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    if stored.index or stored.permute is not None:
        values = file.read(name)[stored.index]
        values = values if stored.permute is None else values.transpose(stored.permute)
        with np.errstate(over="ignore"):  # what is too large for the dtype becomes infinite
            out.reshape(values.shape)[...] = values
        file.release(name)
        return out
    flat = out.reshape(stored.shape)

    def copy(rows: slice) -> None:
        values = file.read_rows(name, rows.start, rows.stop)
        with np.errstate(over="ignore"):  # what is too large for the dtype becomes infinite
            flat[rows] = values - np.float32(stored.offset) if stored.offset else values
        file.release(name)

    parts = list(row_chunks(stored.shape))
    list(map(copy, parts) if len(parts) == 1 else pool.map(copy, parts))
    return out
