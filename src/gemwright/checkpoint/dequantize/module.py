"""The tensors of one quantized module in a safetensors file, and the matrix that they encode."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.dequantize.numbers import DTYPES
from gemwright.checkpoint.files.safetensors import SafetensorsFile
from gemwright.errors import CheckpointError

SCALES = ("F16", "BF16", "F32")
"""Encodings of scales, in most formats."""


@dataclass(frozen=True)
class Matrix:
    """A matrix that is decoded when it is read.

    Attributes:
        shape: Outputs and inputs.
        encoding: The 16-bit encoding in which the matrix is kept as stored, that of its scales: "F16" or "BF16".
        decode: Return rows `start` to `stop`, `[stop - start, inputs]` float32.
    """

    shape: tuple[int, ...]
    encoding: str
    decode: Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True)
class Module:
    """The tensors `NAME.LEAF` of a module.

    Attributes:
        file: The file.
        name: The module, such as `model.layers.0.self_attn.q_proj`.
        method: The quantization method, for error messages.
    """

    file: SafetensorsFile
    name: str
    method: str

    def __contains__(self, leaf: str) -> bool:
        return f"{self.name}.{leaf}" in self.file.tensors

    def shape(self, leaf: str, axes: int = 2) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            CheckpointError: It is missing or has another number of axes.
        """
        if leaf not in self:
            raise self.error(f"has no '{leaf}'")
        shape = self.file.tensors[f"{self.name}.{leaf}"].shape
        if len(shape) != axes or not math.prod(shape):
            raise self.error(f"has a '{leaf}' of shape {list(shape)}, and it needs {axes} axes")
        return shape

    def array(self, leaf: str, shape: tuple[int, ...], *encodings: str) -> NDArray[Any]:
        """Return a tensor as a view of the mapped file.

        Raises:
            CheckpointError: It is missing, or has another shape or none of the encodings.
        """
        if leaf not in self:
            raise self.error(f"has no '{leaf}'")
        info = self.file.tensors[f"{self.name}.{leaf}"]
        if info.encoding not in encodings or info.shape != shape:
            needed = f"{' or '.join(encodings)} {list(shape)}"
            raise self.error(f"has a '{leaf}' of {info.encoding} {list(info.shape)}, and it needs {needed}")
        return self.file.raw(f"{self.name}.{leaf}").view(DTYPES[info.encoding]).reshape(shape)

    def scalar(self, leaf: str) -> np.float32:
        """Return a tensor of one number.

        Raises:
            CheckpointError: It is missing or has more numbers.
        """
        shape = (1,) if leaf in self and self.file.tensors[f"{self.name}.{leaf}"].shape == (1,) else ()
        return np.float32(self.array(leaf, shape, *SCALES).reshape(())[()])

    def encoding(self, leaf: str) -> str:
        """Return the encoding for a matrix with these scales: F16 for F16, else BF16."""
        return "F16" if self.file.tensors[f"{self.name}.{leaf}"].encoding == "F16" else "BF16"

    def error(self, problem: str) -> CheckpointError:
        """Return the error for a module that does not have the layout of the method."""
        return CheckpointError(
            f"{self.file.path}: {self.name:.200} {problem} ({self.method}); download or quantize the model again."
        )


def block_size(config: ConfigReader, key: str) -> tuple[int, int]:
    """Return the rows and columns of a block."""
    match config.data.get(key):
        case [int(height), int(width)] if min(height, width) > 0 and bool not in map(type, (height, width)):
            return height, width
        case _:
            raise config.error(key, "two positive whole numbers")


def read_group_index(module: Module, leaf: str, width: int, groups: int) -> NDArray[np.int32] | None:
    """Return the group of each column, or None if they are in order."""
    index = module.array(leaf, (width,), "I32")
    if (index == -1).any():  # not set: the columns are in order
        return None
    if index.min() < 0 or index.max() >= groups:
        raise module.error(f"has a '{leaf}' that names a group outside 0 to {groups - 1}")
    return index
