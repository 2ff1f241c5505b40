"""GPTQ and AWQ: matrices stored as [inputs, outputs], integers and zero points packed in words of 32 bits.

Source: ModelCloud/GPTQModel 7.7 and AutoGPTQ 0.7 `nn_modules/qlinear` (GPTQ); casper-hansen/AutoAWQ 0.2.9
`modules/linear/gemm.py`, `gemv.py` and `utils/packing_utils.py` (AWQ).
"""

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.dequantize.module import SCALES, Matrix, Module, read_group_index
from gemwright.checkpoint.dequantize.numbers import Blocks, unpack

AWQ_COLUMNS = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Place in a word of AWQ of each of its eight columns."""


def check_gptq(config: ConfigReader) -> None:
    """Check the keys of GPTQ.

    Raises:
        CheckpointError: The layout is not supported.
    """
    config.choice("bits", 4, 2, 3, 8)
    for key in ("checkpoint_format", "format"):
        config.choice(key, None, "gptq", "gptq_v2")
    if config.data.get("dynamic"):
        raise config.error("dynamic", "absent: one number of bits for all modules is supported")


def read_gptq(module: Module, config: ConfigReader) -> Matrix:
    """Return the matrix of a GPTQ module: words run along the inputs, and along the outputs in the zero points."""
    bits = config.choice("bits", 4, 2, 3, 8)
    words, rows = module.shape("qweight")
    if words * 32 % bits or rows * bits % 32:
        raise module.error(f"has a 'qweight' of {words} x {rows} words, which {bits}-bit numbers do not fill")
    width = words * 32 // bits
    groups, size = _groups(config, "group_size", width)
    packed = module.array("qweight", (words, rows), "I32")
    zeros = module.array("qzeros", (groups, rows * bits // 32), "I32")
    scales = module.array("scales", (groups, rows), *SCALES)
    index = read_group_index(module, "g_idx", width, groups) if "g_idx" in module else None
    # The first version stores the zero point minus one.
    version = config.data.get("checkpoint_format") or config.data.get("format")
    one, mask = np.uint8(version != "gptq_v2"), np.uint8((1 << bits) - 1)

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        part = slice(start, stop)
        values = unpack(packed[:, part].T, bits).astype(np.float32)
        first = start // 32  # a number may cross words within 32 of them
        zero = unpack(zeros[:, first * bits : -(-stop // 32) * bits], bits)[:, start - 32 * first :][:, : stop - start]
        values -= Blocks((zero.T + one) & mask, 1, size, index).read(0, len(values), width)
        values *= Blocks(scales[:, part].T, 1, size, index).read(0, len(values), width)
        return values

    return Matrix((rows, width), module.encoding("scales"), decode)


def _groups(config: ConfigReader, key: str, width: int) -> tuple[int, int]:
    """Return the number of groups of a row and their size."""
    size = width if config.data.get(key) == -1 else config.integer(key)
    return -(-width // size), size


def check_awq(config: ConfigReader) -> None:
    """Check the keys of AWQ.

    Raises:
        CheckpointError: The layout is not supported.
    """
    config.choice("bits" if "bits" in config.data else "w_bit", 4)
    version = config.data.get("version") or config.data.get("format")
    if version is not None and str(version).lower() != "gemm":
        raise config.error("version", "gemm")


def read_awq(module: Module, config: ConfigReader) -> Matrix:
    """Return the matrix of an AWQ module: words run along the outputs, in an order of their own."""
    width, words = module.shape("qweight")
    rows = 8 * words
    groups, size = _groups(config, "group_size" if "group_size" in config.data else "q_group_size", width)
    packed = module.array("qweight", (width, words), "I32")
    zeros = module.array("qzeros", (groups, words), "I32")
    scales = module.array("scales", (groups, rows), *SCALES)

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        values = _unpack_awq(packed, start, stop).astype(np.float32)
        values -= Blocks(_unpack_awq(zeros, start, stop), 1, size).read(0, stop - start, width)
        values *= Blocks(scales[:, start:stop].T, 1, size).read(0, stop - start, width)
        return values

    return Matrix((rows, width), module.encoding("scales"), decode)


def _unpack_awq(packed: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
    """Return columns `start` to `stop` as rows."""
    first = start // 8
    part = packed[:, first : -(-stop // 8)]
    numbers = unpack(part, 4).reshape(*part.shape, 8)[..., AWQ_COLUMNS].reshape(len(part), -1)
    return numbers[:, start - 8 * first : stop - 8 * first].T
