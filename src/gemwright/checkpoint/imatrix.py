"""Importance matrices of llama.cpp: for each matrix, the mean square of each input on a calibration text.

Source: ggml-org/llama.cpp tools/imatrix (both formats), src/llama-quant.cpp (use).
"""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import file_error, map_file
from gemwright.checkpoint.files.gguf import MAGIC, MAX_ENTRIES, GgufFile, open_gguf

Importance = dict[str, NDArray[np.float32]]
"""The importance of each column, of positive numbers with a mean of 1, by name of the GGUF tensor."""

FLOOR = 1e-6
"""Smallest importance: a column without any still gets a sensible value."""


def read_imatrix(path: Path) -> Importance:
    """Read an importance matrix in the older format (`imatrix.dat`) or as GGUF.

    Raises:
        CheckpointError: The file cannot be opened, is damaged or is not an importance matrix.
    """
    data = map_file(path)
    sums = _read_gguf(open_gguf(path)) if data[:4] == MAGIC else _read_legacy(path, memoryview(data))
    return {name: _normalize(path, name, values) for name, values in sums.items()}


def _normalize(path: Path, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = float(values.mean(dtype=np.float64)) if values.size else 0.0
    if not math.isfinite(mean) or values.min(initial=0) < 0:
        raise file_error(path, f"the importance of tensor {name!r:.80} is not finite or is negative")
    if mean == 0:
        return np.ones_like(values)
    return np.maximum(values / mean, FLOOR).astype(np.float32)


def _read_gguf(file: GgufFile) -> Importance:
    """Add up the experts of a tensor, if it has several."""
    found: Importance = {}
    for name, info in file.tensors.items():
        stem = name.removesuffix(".in_sum2")
        if stem == name:
            continue
        if info.encoding != "F32" or not 1 <= len(info.shape) <= 2:
            raise file_error(file.path, f"tensor {name!r:.80} is not a float32 matrix")
        found[stem] = file.read(name).reshape(-1, info.shape[-1]).sum(axis=0)
    if not found:
        raise file_error(file.path, "is not an importance matrix", "choose a file that llama-imatrix wrote")
    return found


def _read_legacy(path: Path, data: memoryview) -> Importance:
    """Read a count, then entries of a name, a number of calls and sums, each after its length."""
    found: Importance = {}
    try:
        (count,), position = struct.unpack_from("<i", data), 4
        if not 0 < count <= MAX_ENTRIES:
            raise ValueError
        for _ in range(count):
            (length,) = struct.unpack_from("<i", data, position)
            if not 0 < length <= len(data):
                raise ValueError
            name = bytes(data[position + 4 : position + 4 + length]).decode()
            _, size = struct.unpack_from("<ii", data, position + 4 + length)
            position += length + 12
            if size <= 0 or name in found:
                raise ValueError
            found[name] = np.frombuffer(data, "<f4", size, position)
            position += 4 * size
    except (ValueError, struct.error) as error:
        raise file_error(path, "is not an importance matrix, or is damaged", "choose one of llama-imatrix") from error
    return found
