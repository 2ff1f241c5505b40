"""Compare the tensors of a checkpoint with those of its source, some rows at a time, in any two formats."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.dequantize.file import DequantizedFile
from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.load import row_chunks
from gemwright.checkpoint.names.mapping import TensorMapping, plain_name
from gemwright.checkpoint.open import Checkpoint
from gemwright.loading.gate import rounding_error
from gemwright.model.params import param_specs
from gemwright.release.verify.report import Check, passes, some
from gemwright.release.verify.values import Progress

FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Encodings in which a rounded value is defined bit for bit."""
BY_BITS = {8: "Q8_0", 6: "Q6_K", 5: "Q5_0", 4: "Q4_0", 3: "Q3_K", 2: "Q2_K"}
"""The encoding with the error of another one with so many bits per weight."""
TYPICAL_MARGIN, LARGEST_MARGIN = 2.0, 4.0
"""Bounds on the error of a quantized tensor, in units of the relative error of its encoding: on the root mean square,
and on the largest error of a block, relative to the largest value around it."""
BLOCK, AROUND = 32, 256
"""Number of values of a row whose largest error is compared with the largest value among so many."""


@dataclass(frozen=True)
class _Stored:
    """A weight in a file."""

    file: TensorFile
    name: str
    tensor: TensorMapping

    @property
    def plain(self) -> bool:
        return not self.tensor.index and self.tensor.permute is None

    def whole(self) -> NDArray[np.float32]:
        values = self.file.read(self.name)[self.tensor.index]
        values = values if self.tensor.permute is None else values.transpose(self.tensor.permute)
        return np.asarray(values, np.float32)

    def rows(self, part: slice) -> NDArray[np.float32]:
        return np.asarray(self.file.read_rows(self.name, part.start, part.stop), np.float32)


@dataclass
class _Tally:
    equal: int = 0
    rounded: int = 0
    quantized: int = 0
    worst: float = 0.0
    problems: list[str] = field(default_factory=list[str])


def compare_tensors(found: Checkpoint, source: Checkpoint, progress: Progress) -> Check:
    """Compare every weight of a checkpoint with that of its source.

    A weight is equal bit for bit, or the source's rounded to its float encoding bit for bit, or quantized with an error
    that its encoding explains, overall and in each block.

    Args:
        found: The checkpoint.
        source: The source, of the same config but for the rows of the embedding.
        progress: Called with the number of bytes compared and the total.
    """
    names = {plain_name(name): name for name in found.file.tensors}
    origin = {plain_name(name): name for name in source.file.tensors}
    shapes = tree.flatten(param_specs(found.config))
    tally, done = _Tally(), 0
    total = sum(found.file.tensors[name].nbytes for name in names.values())
    for path, tensor in found.mapping.items():
        mapped = source.mapping.get(path) or source.mapping["embed"]  # a head that is tied in the source
        ours = _Stored(found.file, names[plain_name(tensor.name)], tensor)
        theirs = _Stored(source.file, origin[plain_name(mapped.name)], mapped)
        if problem := _compare(ours, theirs, shapes[path].shape, tally):
            tally.problems.append(f"{ours.name} {problem}")
        done += found.file.tensors[ours.name].nbytes // math.prod(
            found.file.tensors[ours.name].shape[: len(tensor.index)]
        )
        progress(done, total)
    return _summarize(tally, len(found.mapping))


def _summarize(tally: _Tally, count: int) -> Check:
    numbers = {"weights": float(count), "equal": tally.equal, "rounded": tally.rounded, "quantized": tally.quantized}
    if tally.problems:
        return Check("weights", "failed", some(tally.problems), numbers)
    parts = [f"{tally.equal} of {count} weights are equal bit for bit"] if tally.equal else []
    parts += [f"{tally.rounded} are the source's rounded to their dtype, bit for bit"] if tally.rounded else []
    if tally.quantized:
        parts.append(f"{tally.quantized} are quantized, with an error of at most {tally.worst:.2g} of their size")
        numbers["relative_error"] = tally.worst
    return passes("weights", True, "; ".join(parts), **numbers)


def _compare(ours: _Stored, theirs: _Stored, shape: tuple[int, ...], tally: _Tally) -> str | None:
    """Add a weight to the tally, or return what is wrong with it."""
    encoding = _quantized_encoding(ours)
    equal = rounded = True
    errors = _Errors(encoding) if encoding else None
    for found, expected in _pairs(ours, theirs, shape):
        if np.array_equal(found, expected):
            if errors is not None:
                errors.add(found, expected)
            continue
        equal = False
        if errors is not None:
            errors.add(found, expected)
            continue
        dtype = FLOATS[ours.file.tensors[ours.name].encoding]
        with np.errstate(over="ignore"):
            differs = expected.astype(dtype).astype(np.float32) != found
        if np.any(differs):
            rounded = False
            at = np.argwhere(differs)[0]
            return (
                f"has {found[tuple(at)]:.8g} where its source has {expected[tuple(at)]:.8g}, "
                f"and {np.count_nonzero(differs):,} such values in {len(found):,} rows"
            )
    if equal:
        tally.equal += 1
    elif errors is None:
        tally.rounded += rounded
    else:
        tally.quantized += 1
        tally.worst = max(tally.worst, errors.typical)
        return errors.problem()
    return None


def _pairs(
    ours: _Stored, theirs: _Stored, shape: tuple[int, ...]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield the values of rows as they are stored in the first file, and as they should be."""
    if ours.plain and theirs.plain and ours.tensor.shape[1:] == theirs.tensor.shape[1:]:
        count = min(ours.tensor.shape[0], theirs.tensor.shape[0])
        for part in row_chunks((count, *ours.tensor.shape[1:])):
            found = ours.rows(part)
            yield found, _shift(theirs.rows(part), found, ours, theirs)
            ours.file.release(ours.name)
            theirs.file.release(theirs.name)
        return
    found, expected = ours.whole().reshape(shape), theirs.whole()
    expected = expected.reshape(-1, *shape[1:])[: shape[0]]
    found = found[: len(expected)]
    yield found, _shift(expected, found, ours, theirs)


def _shift(
    values: NDArray[np.float32], found: NDArray[np.float32], ours: _Stored, theirs: _Stored
) -> NDArray[np.float32]:
    """Return values of the second file as the first has them, with its offset.

    A copy of a file keeps them; reading and writing them takes the offset away and adds it, and both steps round.
    """
    if ours.tensor.offset == theirs.tensor.offset and np.array_equal(values, found):
        return values
    values = values - np.float32(theirs.tensor.offset) if theirs.tensor.offset else values
    return values + np.float32(ours.tensor.offset) if ours.tensor.offset else values


def _quantized_encoding(stored: _Stored) -> str | None:
    """Return the encoding whose rounding explains the error of a weight; None for a float."""
    file, info = stored.file, stored.file.tensors[stored.name]
    if isinstance(file, DequantizedFile) and stored.name in file.matrices:
        nbytes = sum(file.file.tensors[part].nbytes for part in file.parts[stored.name])
        return _encoding_of_bits(8 * nbytes / math.prod(info.shape))
    if info.encoding in FLOATS:
        return None
    known = ggml.ENCODINGS.get(info.encoding)
    if known is not None and known.encode is not None:
        return info.encoding
    return _encoding_of_bits(8 * info.nbytes / math.prod(info.shape))


def _encoding_of_bits(bits: float) -> str:
    return BY_BITS[max((known for known in BY_BITS if known <= bits), default=2)]


class _Errors:
    """The errors of a quantized weight."""

    def __init__(self, encoding: str):
        self._encoding, self._squares, self._total, self._largest, self._blocks = encoding, 0.0, 0.0, 0.0, 0

    def add(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        error = np.abs(found - expected)
        self._squares += float(np.sum(np.square(error, dtype=np.float64)))
        self._total += float(np.sum(np.square(expected, dtype=np.float64)))
        around = AROUND if expected.size % AROUND == 0 and expected.shape[-1] % AROUND == 0 else BLOCK
        size = np.abs(expected).reshape(-1, around).max(axis=1)
        relative = error.reshape(-1, around).max(axis=1) / np.maximum(size, np.finfo(np.float32).tiny)
        relative = np.where(np.isfinite(relative), relative, np.inf)
        self._largest = max(self._largest, float(relative.max()))
        self._blocks += int(np.count_nonzero(relative > LARGEST_MARGIN * typical_error(self._encoding)))

    @property
    def typical(self) -> float:
        return math.sqrt(self._squares / self._total) if self._total else 0.0

    def problem(self) -> str | None:
        usual = typical_error(self._encoding)
        if self._blocks:
            return (
                f"has {self._blocks:,} blocks with an error of up to {self._largest:.2g} of their largest value, where "
                f"{LARGEST_MARGIN * usual:.2g} is explained by {self._encoding}"
            )
        if not self.typical <= TYPICAL_MARGIN * usual:
            return f"has an error of {self.typical:.2g}, where {self._encoding} explains {TYPICAL_MARGIN * usual:.2g}"
        return None


@functools.cache
def typical_error(encoding: str) -> float:
    """Return the relative root mean square error of rounding normally distributed values to an encoding."""
    return rounding_error(encoding, np.random.default_rng(0).standard_normal((64, 256), np.float32))


def stored_encodings(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the encoding of each weight, by path, or one that has the error of its own."""
    names = {plain_name(name): name for name in checkpoint.file.tensors}
    stored = {
        path: _Stored(checkpoint.file, names[plain_name(tensor.name)], tensor)
        for path, tensor in checkpoint.mapping.items()
    }
    return {
        path: _quantized_encoding(place) or place.file.tensors[place.name].encoding for path, place in stored.items()
    }
