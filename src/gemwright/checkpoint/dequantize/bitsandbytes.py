"""bitsandbytes: 4-bit numbers that index a table, or int8 rows.

Source: bitsandbytes-foundation/bitsandbytes 0.50 `functional.py` (`QuantState`, `dequantize_4bit`), `nn/modules.py`
(`Linear8bitLt`).
"""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.dequantize.module import Matrix, Module
from gemwright.checkpoint.dequantize.numbers import unpack

STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
"""Tensors that hold the description of a matrix, as JSON."""
MAX_STATE = 1 << 12
"""Maximum size of a description in bytes; it has about ten keys."""


def read(module: Module, config: ConfigReader) -> Matrix:
    """Return the matrix of a module."""
    return _read_int8(module) if "SCB" in module else _read_4bit(module)


def _read_int8(module: Module) -> Matrix:
    """Return a matrix of int8, whose rows have the maximum `SCB`."""
    rows, width = module.shape("weight")
    numbers = module.array("weight", (rows, width), "I8")
    if "weight_format" in module and module.array("weight_format", (), "U8")[()] != 0:
        raise module.error("has a 'weight_format' other than row-major")
    maxima = module.array("SCB", (rows,), "F32")

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        values = numbers[start:stop].astype(np.float32)
        values *= maxima[start:stop, None]
        values *= np.float32(1 / 127)
        return values

    return Matrix((rows, width), "BF16", decode)


def _read_4bit(module: Module) -> Matrix:
    """Return a matrix of 4-bit numbers, high bits first, in blocks that may cross rows."""
    state = _read_state(module)
    rows, width = _shape(state)
    block = state.choice("blocksize", 64, 32, 128, 256, 512, 1024, 2048, 4096)
    info = module.file.tensors.get(f"{module.name}.weight")
    if info is None or info.nbytes != rows * width // 2 or rows * width % 2:
        raise module.error(f"has a 'weight' that does not hold {rows} x {width} 4-bit numbers")
    packed = module.file.raw(f"{module.name}.weight")
    table = module.array("weight.quant_map", (16,), "F32").copy()
    scales = _read_scales(module, state, -(-rows * width // block))

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        first, last = start * width, stop * width
        halves = unpack(packed[None, first // 2 : -(-last // 2)], 4).reshape(-1, 2)[:, ::-1].reshape(-1)
        values = table[halves[first % 2 :][: last - first]]
        blocks = scales(first // block, -(-last // block))
        values *= np.repeat(blocks, block)[first % block :][: last - first]
        return values.reshape(stop - start, width)

    return Matrix((rows, width), "BF16", decode)


def _read_state(module: Module) -> ConfigReader:
    leaf = next((leaf for leaf in STATES if leaf in module), None)
    if leaf is None:
        raise module.error(f"has no '{STATES[0]}'")
    (size,) = module.shape(leaf, 1)
    if size > MAX_STATE:
        raise module.error(f"has a '{leaf}' of {size} bytes")
    try:
        data: Any = json.loads(module.array(leaf, (size,), "U8").tobytes())
    except (ValueError, RecursionError) as error:
        raise module.error(f"has a '{leaf}' that is not JSON") from error
    if not isinstance(data, dict):
        raise module.error(f"has a '{leaf}' that is not a JSON object")
    return ConfigReader(data, str(module.file.path), f"{module.name}.{leaf}.")


def _shape(state: ConfigReader) -> tuple[int, int]:
    match state.data.get("shape"):
        case [int(rows), int(width)] if rows > 0 and width > 0:
            return rows, width
        case _:
            raise state.error("shape", "two positive whole numbers")


def _read_scales(module: Module, state: ConfigReader, count: int) -> Callable[[int, int], NDArray[np.float32]]:
    """Return a function that reads the scales of blocks `start` to `stop`, which may be quantized themselves."""
    nested = "weight.nested_absmax" in module
    stored = module.array("weight.absmax", (count,), "U8" if nested else "F32")
    if not nested:
        return lambda start, stop: stored[start:stop]
    block, offset = state.integer("nested_blocksize"), state.data.get("nested_offset")
    if not isinstance(offset, float) or not math.isfinite(offset):
        raise state.error("nested_offset", "a number")
    table = module.array("weight.nested_quant_map", (256,), "F32").copy()
    maxima = module.array("weight.nested_absmax", (-(-count // block),), "F32")

    def scales(start: int, stop: int) -> NDArray[np.float32]:
        return table[stored[start:stop]] * maxima[np.arange(start, stop) // block] + np.float32(offset)

    return scales
