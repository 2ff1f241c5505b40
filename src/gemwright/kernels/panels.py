"""Q8_0 and Q4_0 weights in the layout of the C++ kernels, for numpy and for XLA on any platform.

A weight [rows, width] is divided into panels of 16 rows, the last one padded, and a panel into blocks along its width.
A block has 16 scales d (float16), one a row, then 32 numbers q of each row, in 8 steps of 4: a step has four numbers of
row 0, then of row 1, and so on. In Q8_0, q is a signed byte and the value is d * q. In Q4_0 the value is d * (q - 8);
steps 0-3 are the low halves of the bytes and steps 4-7 the high ones. Source: native/src/kernels/format.h.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16
"""Number of rows of a panel."""
GROUP = 32
"""Number of values of a row that share a scale."""
BITS = {"Q8_0": 8, "Q4_0": 4}
"""Bits of a number, by encoding."""


def packed_bytes(encoding: str, rows: int, width: int) -> int:
    """Return the bytes of a weight; `width` is a multiple of `GROUP`."""
    return -(-rows // LANES) * (width // GROUP) * block_bytes(encoding)


def pack(encoding: str, scales: NDArray[np.float16], numbers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack a weight into panels; missing rows of the last one have NaN as their scale.

    Args:
        encoding: A key of `BITS`.
        scales: [rows, groups].
        numbers: [rows, groups, 32], without the scales.

    Returns:
        The bytes, equal to those of `gemwright_native.repack`.
    """
    rows, groups, _ = numbers.shape
    panels, missing = -(-rows // LANES), -rows % LANES
    scales = np.pad(scales, ((0, missing), (0, 0)), constant_values=np.float16("nan"))
    stored = numbers.view(np.uint8) if encoding == "Q8_0" else (numbers + np.int8(8)).view(np.uint8)
    stored = np.pad(stored, ((0, missing), (0, 0), (0, 0))).reshape(panels, LANES, groups, 8, 4)
    stored = stored.transpose(0, 2, 3, 1, 4)
    if encoding == "Q4_0":
        stored = stored[:, :, :4] | stored[:, :, 4:] << 4
    blocks = np.empty((panels, groups, block_bytes(encoding)), np.uint8)
    blocks[:, :, : 2 * LANES].view(np.float16)[...] = scales.reshape(panels, LANES, groups).swapaxes(1, 2)
    blocks[:, :, 2 * LANES :] = stored.reshape(panels, groups, -1)
    return blocks.reshape(-1)


def decode(packed: Any, encoding: str, width: int) -> Any:
    """Return the exact values of whole panels, [16 * panels, width] float32, of numpy or JAX like `packed`."""
    blocks = packed.reshape(-1, width // GROUP, block_bytes(encoding))
    return block_values(*split_blocks(blocks), encoding).reshape(-1, width)


def block_bytes(encoding: str) -> int:
    """Return the bytes of a block of 16 rows and 32 values."""
    return 2 * LANES + LANES * GROUP * BITS[encoding] // 8


def split_blocks(blocks: Any) -> tuple[Any, Any]:
    """Return scales [panels, groups, 16] and bytes of numbers [panels, groups, steps, 16, 4] of blocks."""
    scales = blocks[..., : 2 * LANES].view(np.float16)
    return scales, blocks[..., 2 * LANES :].reshape(*blocks.shape[:2], -1, LANES, 4)


def block_values(scales: Any, stored: Any, encoding: str) -> Any:
    """Return values [panels, rows, groups, 8, 4].

    Args:
        scales: [panels, groups, rows].
        stored: [panels, groups, steps, rows, 4] bytes of numbers.
        encoding: A key of `BITS`.
    """
    if encoding == "Q8_0":
        numbers = stored.view(np.int8)
    else:
        both = stored.__array_namespace__().concat([stored & 15, stored >> 4], axis=2)
        numbers = both.view(np.int8) - np.int8(8)
    values = numbers.astype(np.float32) * scales.astype(np.float32)[:, :, None, :, None]
    return values.transpose(0, 3, 1, 2, 4)
