"""Small floats of transformers (`fp8`, `fbgemm_fp8`) and of NVIDIA's Model Optimizer (`modelopt`).

Source: huggingface/transformers 5.23 `integrations/finegrained_fp8.py`, `integrations/fbgemm_fp8.py`;
NVIDIA/Model-Optimizer 0.47 `modelopt/torch/export/quant_utils.py`, `modelopt/torch/quantization/qtensor/`.
"""

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.dequantize.module import SCALES, Matrix, Module, block_size
from gemwright.checkpoint.dequantize.numbers import E2M1, Blocks, spread, unpack


def check_modelopt(config: ConfigReader) -> None:
    """Check the algorithm.

    Raises:
        CheckpointError: It is not supported.
    """
    if config.data.get("quant_algo") not in ("FP8", "NVFP4"):
        raise config.error("quant_algo", "FP8 or NVFP4")


def read_scaled(module: Module, config: ConfigReader) -> Matrix:
    """Return a matrix of F8_E4M3 with scales of the matrix, its rows or its blocks."""
    rows, width = module.shape("weight")
    numbers = module.array("weight", (rows, width), "F8_E4M3")
    leaf = "weight_scale_inv" if "weight_scale_inv" in module else "weight_scale"
    scales = _read_scales(module, config, leaf, rows, width)

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        values = numbers[start:stop].astype(np.float32)
        values *= scales.read(start, stop, width)
        return values

    return Matrix((rows, width), module.encoding(leaf), decode)


def _read_scales(module: Module, config: ConfigReader, leaf: str, rows: int, width: int) -> Blocks:
    shape = module.file.tensors[f"{module.name}.{leaf}"].shape
    if shape in ((), (1,), (1, 1)):
        return Blocks(module.array(leaf, shape, *SCALES).reshape(1, 1), rows, width)
    if shape in ((rows,), (rows, 1)) and config.data.get("weight_block_size") is None:
        return Blocks(module.array(leaf, shape, *SCALES).reshape(rows, 1), 1, width)
    height, group = block_size(config, "weight_block_size")
    grid = -(-rows // height), -(-width // group)
    return Blocks(module.array(leaf, grid, *SCALES, "F8_E8M0"), height, group)


def read_modelopt(module: Module, config: ConfigReader) -> Matrix:
    """Return a matrix of Model Optimizer: FP8, or NVFP4 with a scale of each 16 values and a common one."""
    if config.data["quant_algo"] == "FP8":
        return read_scaled(module, config)
    rows, bytes_per_row = module.shape("weight")
    width, group = 2 * bytes_per_row, 16
    packed = module.array("weight", (rows, bytes_per_row), "U8")
    scales = module.array("weight_scale", (rows, -(-width // group)), "F8_E4M3")
    common = module.scalar("weight_scale_2")

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        part = scales[start:stop].astype(np.float32) * common
        return E2M1[unpack(packed[start:stop], 4)] * spread(part, group, width)

    return Matrix((rows, width), "BF16", decode)
