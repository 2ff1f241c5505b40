"""The HDF5 files of Keras, `.weights.h5`. h5py reads their structure, and the values are mapped into memory.

Source of the layout: keras-team/keras `keras/src/saving/saving_lib.py` (`H5IOStore`).
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import file_error, map_file
from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import GemwrightError
from gemwright.runtime.installation import install_command

MAX_ARRAYS = 1 << 16
"""Maximum number of groups and arrays of a file."""
MAX_DEPTH = 16
"""Maximum depth of nested groups."""
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, eq=False)
class Hdf5File:
    """An open HDF5 file: a `TensorFile`.

    Attributes:
        path: The file.
        tensors: Every array, by its path in the file.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    _map: mmap.mmap

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return an array's bytes, `(nbytes,)`, as a read-only view of the mapped file."""
        info = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole array, read-only and possibly unaligned."""
        info = self.tensors[name]
        return self.raw(name).view(_DTYPES[info.encoding]).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return `read(name)[start:stop]`."""
        return self.read(name)[start:stop]

    def release(self, name: str) -> None:
        """Release the pages that reading mapped in."""
        self._map.madvise(mmap.MADV_DONTNEED)


def open_hdf5(path: Path) -> Hdf5File:
    """Open an HDF5 file: read its structure and map the rest.

    Raises:
        CheckpointError: The file is damaged, or has an array that is not one block of float32, float16 or bfloat16.
        GemwrightError: h5py is not installed.
    """
    h5py, data = _import_h5py(), map_file(path)
    tensors: dict[str, TensorInfo] = {}
    try:
        with h5py.File(path, "r") as file:
            for name, array in _walk(h5py, file, path):
                tensors[name] = _describe(path, name, array, len(data))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, GemwrightError):
            raise
        raise file_error(path, f"is damaged ({error!s:.100})") from error
    return Hdf5File(path, tensors, data)


def _import_h5py() -> Any:
    try:
        return import_module("h5py")
    except ImportError as error:
        raise GemwrightError(
            f"Reading Keras weights needs h5py, which is not installed; run {install_command('keras')}."
        ) from error


def _walk(h5py: Any, file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a file by path. Links to other places or files are not followed."""
    groups, seen = [("", file, 0)], 0
    while groups:
        prefix, group, depth = groups.pop()
        for name in group:
            seen += 1
            if seen > MAX_ARRAYS or depth > MAX_DEPTH:
                raise file_error(path, f"has more than {MAX_ARRAYS} arrays, or {MAX_DEPTH} nested groups")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((f"{prefix}{name}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                yield f"{prefix}{name}", item


def _describe(path: Path, name: str, array: Any, size: int) -> TensorInfo:
    """Return the shape and the place of an array."""
    is_bfloat16 = array.attrs.get("dtype") == "bfloat16" and array.dtype.itemsize == 2
    encoding = "BF16" if is_bfloat16 else next((e for e, dtype in _DTYPES.items() if dtype == array.dtype), None)
    offset, shape = array.id.get_offset(), tuple(array.shape or ())
    if encoding is None or offset is None or array.chunks is not None or array.external:
        raise file_error(
            path,
            f"array {name!r:.200} is not one block of float32, float16 or bfloat16",
            "save the weights again with Keras",
        )
    nbytes = array.dtype.itemsize * array.size
    if offset + nbytes > size:
        raise file_error(path, f"array {name!r:.200} goes beyond the end of the file")
    return TensorInfo(shape, encoding, offset, nbytes)
