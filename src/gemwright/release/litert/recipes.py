"""Recipes: the encoding of each weight, and the encodings of LiteRT."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.model.config import Config
from gemwright.model.params import ParamSpec, param_specs

Encoding: TypeAlias = Literal["float32", "int8", "int4"]

PACKAGES = ("litert_converter", "ai_edge_litert", "litert_lm_builder", "litert_lm", "flatbuffers")
"""Packages of the extra `export`."""
SENSITIVE = (".q", ".k", ".v", ".o", ".down", ".out")
"""Suffixes of linear maps of layers whose rounding to 4 bits costs most for their size."""
BLOCK = 32
"""Number of values of an int4 row that share a scale."""
LARGEST_CONSTANT = 1 << 14
"""Most values of a weight that is part of the program."""
STEPS = np.arange(6.0, 9.01, 0.5, np.float32)
"""Steps from zero to the largest value of a block, among which the best is chosen."""


@dataclass(frozen=True)
class Recipe:
    """How weights are stored.

    Attributes:
        linear: Encoding of the linear maps of the layers, but for those of `SENSITIVE`.
        table: Encoding of other linear maps: those, the embedding, the head and the vision tower.
        bound: Largest increase of the mean negative log-likelihood of a token, in nats.
    """

    linear: Encoding
    table: Encoding
    bound: float


RECIPES: Mapping[str, Recipe] = {
    "f32": Recipe("float32", "float32", 1e-4),
    "int8": Recipe("int8", "int8", 0.05),
    "int4": Recipe("int4", "int8", 0.1),
}
"""Recipes by the name of `--weights`. Four bits cost too much in a table: each row is looked up or compared alone."""


def matrix_shape(path: str, spec: ParamSpec) -> tuple[int, ...]:
    """Return the shape of a weight in the program: linear maps are matrices, so that none needs to be reshaped."""
    if not spec.linear:
        return spec.shape
    rows = spec.shape[0] if path.endswith(".o") else math.prod(spec.shape[:-1])  # o contracts its last two axes
    return rows, spec.size // rows


def is_constant(spec: ParamSpec) -> bool:
    """Return whether a weight is part of the program, where the converter can fold what is computed of it."""
    return not spec.linear and spec.size <= LARGEST_CONSTANT


def choose_encoding(recipe: Recipe, path: str, spec: ParamSpec) -> Encoding:
    """Return the encoding of a weight."""
    if not spec.linear:
        return "float32"
    chosen = recipe.linear if path.startswith("layers.") and not path.endswith(SENSITIVE) else recipe.table
    return "int8" if chosen == "int4" and matrix_shape(path, spec)[1] % BLOCK else chosen


def expected_bytes(recipe: Recipe, config: Config) -> int:
    """Return the size of a model's weights without their scales."""
    specs = tree.flatten(param_specs(config))
    return sum(encoded_bytes(choose_encoding(recipe, path, spec), spec.size) for path, spec in specs.items())


def encoded_bytes(encoding: Encoding, values: int) -> int:
    """Return the size of a number of values, without their scales."""
    return {"float32": 4 * values, "int8": values, "int4": values // 2}[encoding]


def encode(encoding: Encoding, rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the bytes of rows, and the scale of each row (int8) or block (int4)."""
    return _ENCODE[encoding](rows)


def _encode_float32(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return rows.view(np.uint8), np.empty(0, np.float32)


def _encode_int8(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    scales = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny * 127) / np.float32(127)
    return np.rint(rows / scales[:, None]).astype(np.int8).view(np.uint8), scales


def _encode_int4(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Choose the scale of each block with the least squared error; a scale has the bits of bfloat16 and float16."""
    blocks = rows.reshape(-1, BLOCK)
    largest = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), 1e-4)
    best, error, chosen = largest, np.full_like(largest, np.inf), np.zeros_like(blocks)
    for steps in (*STEPS, None):
        scales = largest / steps if steps else _fit_scales(blocks, chosen)
        scales = scales.astype(ml_dtypes.bfloat16).astype(np.float32)
        values = np.clip(np.rint(blocks / scales), -8, 7)
        found = np.square(values * scales - blocks).sum(axis=1, keepdims=True)
        better = found < error
        best, error = np.where(better, scales, best), np.where(better, found, error)
        chosen = np.where(better, values, chosen)
    nibbles = chosen.astype(np.int8).reshape(len(rows), -1).view(np.uint8) & np.uint8(15)
    packed: NDArray[np.uint8] = nibbles[:, ::2] | nibbles[:, 1::2] << np.uint8(4)
    return packed, best.reshape(len(rows), -1)


def _fit_scales(blocks: NDArray[np.float32], integers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scale of each block with which its integers are nearest to it."""
    products = (integers * blocks).sum(axis=1, keepdims=True)
    return np.maximum(products / np.maximum(np.square(integers).sum(axis=1, keepdims=True), 1), np.float32(1e-5))


_ENCODE: Mapping[Encoding, Callable[[NDArray[np.float32]], tuple[NDArray[np.uint8], NDArray[np.float32]]]] = {
    "float32": _encode_float32,
    "int8": _encode_int8,
    "int4": _encode_int4,
}
