"""Scan the values of a checkpoint's tensors for damage: numbers that are not finite, zeroed rows, outliers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.load import row_chunks
from gemwright.checkpoint.names.mapping import TensorMapping, plain_name
from gemwright.release.verify.report import Check, passes, some

OUTLIER = 1000.0
"""Largest absolute value of a matrix in units of its root mean square. In published Gemmas it is below 100."""
LARGEST_GAIN = 1e4
"""Largest absolute value of a gain or a bias."""

Progress = Callable[[int, int], None]


@dataclass
class Scan:
    """The values of a tensor in numbers.

    Attributes:
        count: Number of values.
        bad: Number of values that are not finite.
        squares: Sum of the squares of the others.
        largest: Largest absolute value of the others.
        zero_rows: Number of rows of zeros.
        rows: Number of rows.
    """

    count: int = 0
    bad: int = 0
    squares: float = 0.0
    largest: float = 0.0
    zero_rows: int = 0
    rows: int = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Add rows of values."""
        finite = np.isfinite(values)
        bad = values.size - int(np.count_nonzero(finite))
        if bad:
            values = np.where(finite, values, 0)
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
        self.count += values.size
        self.bad += bad
        self.squares += float(np.sum(np.square(values, dtype=np.float64)))
        self.largest = max(self.largest, float(largest.max()))
        self.zero_rows += int(np.count_nonzero(largest == 0))
        self.rows += len(values)

    @property
    def typical(self) -> float:
        """Root mean square of the finite values."""
        return math.sqrt(self.squares / max(1, self.count - self.bad))


def read_chunks(file: TensorFile, name: str) -> Iterator[NDArray[np.float32]]:
    """Yield the values of a tensor, some rows at a time."""
    for rows in row_chunks(file.tensors[name].shape):
        yield np.asarray(file.read_rows(name, rows.start, rows.stop), np.float32)
        file.release(name)


def scan(file: TensorFile, name: str) -> Scan:
    """Return the values of a tensor in numbers."""
    found = Scan()
    for values in read_chunks(file, name):
        found.add(values)
    return found


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
    if found.bad:
        yield f"{name} has {found.bad:,} values that are not finite"
    elif found.count and not found.largest and len(shape) > 1:
        yield f"{name} is zero"
    elif len(shape) > 1 and found.largest > OUTLIER * found.typical:
        yield f"{name} has a value of {found.largest:.3g}, {found.largest / found.typical:,.0f} times its usual size"
    elif found.largest > LARGEST_GAIN and len(shape) == 1:
        yield f"{name} has a value of {found.largest:.3g}"
    elif found.zero_rows and len(shape) > 1 and path not in ("embed", "head"):  # tables have rows of unused tokens
        yield f"{name} has {found.zero_rows:,} rows of zeros among {found.rows:,}"
