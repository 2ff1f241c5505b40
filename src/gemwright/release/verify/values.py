"""Scan the values of a checkpoint's tensors for damage: numbers that are not finite, zeroed rows, outliers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.load import row_chunks
from gemwright.checkpoint.names.mapping import TensorMapping, plain_name
from gemwright.release.verify.report import Check, passes, some

OUTLIER = 1000.0
"""Largest absolute value of a matrix in units of the largest of its median row. It is at most 14 in the 270M."""
LARGEST_GAIN = 1e6
"""Largest absolute value of a gain or a bias. It is at most 1657 in the 270M."""

Progress = Callable[[int, int], None]


@dataclass
class Scan:
    """The values of a tensor in numbers.

    Attributes:
        bad: Number of values that are not finite.
        largest: Largest absolute value of each row, without those.
    """

    bad: int
    largest: NDArray[np.float32]

    @property
    def zero_rows(self) -> int:
        """Number of rows of zeros."""
        return int(np.count_nonzero(self.largest == 0))


def read_chunks(file: TensorFile, name: str) -> Iterator[NDArray[np.float32]]:
    """Yield the values of a tensor, some rows at a time."""
    for rows in row_chunks(file.tensors[name].shape):
        yield np.asarray(file.read_rows(name, rows.start, rows.stop), np.float32)
        file.release(name)


def scan(file: TensorFile, name: str) -> Scan:
    """Return the values of a tensor in numbers."""
    bad, largest = 0, list[NDArray[np.float32]]()
    for values in read_chunks(file, name):
        finite = np.isfinite(values)
        damaged = values.size - int(np.count_nonzero(finite))
        bad += damaged
        part = np.where(finite, values, 0) if damaged else values
        largest.append(np.abs(part).reshape(len(part), -1).max(axis=1))
    return Scan(bad, np.concatenate(largest))


def check_values(file: TensorFile, mapping: Mapping[str, TensorMapping], progress: Progress) -> Check:
    """Check that the values of all weights are finite and of the usual size."""
    wanted = {plain_name(tensor.name): path for path, tensor in mapping.items()}
    names = {name: wanted[plain_name(name)] for name in file.tensors if plain_name(name) in wanted}
    total, done, problems = sum(file.tensors[name].nbytes for name in names), 0, list[str]()
    for name, path in names.items():
        problems += _find_problems(name, path, scan(file, name), file.tensors[name].shape)
        done += file.tensors[name].nbytes
        progress(done, total)
    if problems:
        return Check("values", "failed", some(problems), {"tensors": len(names), "damaged": len(problems)})
    return passes("values", True, f"those of {len(names)} tensors are finite and of the usual size", tensors=len(names))


def _find_problems(name: str, path: str, found: Scan, shape: tuple[int, ...]) -> Iterator[str]:
    largest, median = float(found.largest.max()), float(np.median(found.largest))
    if found.bad:
        yield f"{name} has {found.bad:,} values that are not finite"
    elif len(shape) == 1:
        if largest > LARGEST_GAIN:
            yield f"{name} has a value of {largest:.3g}"
    elif not largest:
        yield f"{name} is zero"
    elif largest > OUTLIER * median > 0:
        yield f"{name} has a value of {largest:.3g}, {largest / median:,.0f} times the largest of its median row"
    elif found.zero_rows and path not in ("embed", "head"):  # tables have rows of unused tokens
        yield f"{name} has {found.zero_rows:,} rows of zeros among {len(found.largest):,}"
