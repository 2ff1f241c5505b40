"""MLX: rows of packed integers, or of small floats, with scales of groups along the row.

Source: ml-explore/mlx `mlx.core.quantize` and `dequantize` (affine, mxfp4, mxfp8, nvfp4); ml-explore/mlx-lm
`utils.load_model` (the keys of `quantization` in `config.json`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.dequantize.module import SCALES, Matrix, Module
from gemwright.checkpoint.dequantize.numbers import DTYPES, E2M1, spread, unpack
from gemwright.checkpoint.names.mapping import plain_name

FLOATS = {"mxfp4": (4, 32, "F8_E8M0"), "mxfp8": (8, 32, "F8_E8M0"), "nvfp4": (4, 16, "F8_E4M3")}
"""Bits, group size and encoding of the scales, which are stored as U8, of each mode with floats."""


def read(module: Module, config: ConfigReader) -> Matrix:
    """Return the matrix of a module."""
    keys = _overrides(module, config)
    mode = keys.choice("mode", "affine", *FLOATS)
    if mode != "affine":
        return _read_floats(module, *FLOATS[mode])
    bits, group = keys.choice("bits", 4, 2, 3, 5, 6, 8), keys.choice("group_size", 64, 32, 128)
    rows, width, groups = _sizes(module, bits, group)
    packed = module.array("weight", (rows, width * bits // 32), "U32")
    scales = module.array("scales", (rows, groups), *SCALES)
    biases = module.array("qbiases" if "qbiases" in module else "biases", (rows, groups), *SCALES)

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        part = slice(start, stop)
        values = unpack(packed[part], bits) * spread(scales[part], group, width)
        values += spread(biases[part], group, width)
        return values

    return Matrix((rows, width), module.encoding("scales"), decode)


def _overrides(module: Module, config: ConfigReader) -> ConfigReader:
    """Return the keys for a module: those of its own entry, if it has one, else the common ones."""
    own = {plain_name(key): value for key, value in config.data.items() if isinstance(value, Mapping)}
    found = own.get(plain_name(f"{module.name}.weight").removesuffix(".weight")) or own.get(module.name)
    if found is None:
        return config
    common = {key: config.data[key] for key in ("bits", "group_size", "mode") if key in config.data}
    return ConfigReader({**common, **found}, config.where, f"{config.prefix}{module.name}.")


def _sizes(module: Module, bits: int, group: int) -> tuple[int, int, int]:
    """Return the rows, values per row and groups per row of a packed matrix."""
    rows, words = module.shape("weight")
    if words * 32 % bits:
        raise module.error(f"has rows of {words * 32} bits, which {bits}-bit numbers do not fill")
    width = words * 32 // bits
    return rows, width, -(-width // group)


def _read_floats(module: Module, bits: int, group: int, encoding: str) -> Matrix:
    rows, width, groups = _sizes(module, bits, group)
    packed = module.array("weight", (rows, width * bits // 32), "U32")
    scales = module.array("scales", (rows, groups), "U8").view(DTYPES[encoding])
    return Matrix((rows, width), "BF16", partial(_decode_floats, packed, scales, bits, group))


def _decode_floats(
    packed: NDArray[Any], scales: NDArray[Any], bits: int, group: int, start: int, stop: int
) -> NDArray[np.float32]:
    numbers = unpack(packed[start:stop], bits)
    values = E2M1[numbers] if bits == 4 else numbers.view(DTYPES["F8_E4M3"]).astype(np.float32)
    return values * spread(scales[start:stop], group, values.shape[1])
