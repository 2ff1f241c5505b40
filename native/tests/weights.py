"""Random weights in every encoding, with the values of gemwright's numpy decoder as the reference."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files import ggml


@dataclass(frozen=True)
class RandomWeight:
    """A weight `[out, in]`: its bytes, its values, and the sum of the magnitudes of the terms of each value."""

    encoding: str
    raw: NDArray[np.uint8]
    values: NDArray[np.float32]
    magnitudes: NDArray[np.float32]


def random_weight(encoding: str, shape: tuple[int, int], seed: int = 0) -> RandomWeight:
    """Return a weight with uniform integers and normally distributed scales around zero."""
    random = np.random.default_rng(seed)
    e = ggml.ENCODINGS[encoding]
    if e.block.names is None:
        blocks: NDArray[Any] = random.standard_normal(shape).astype(e.block)
        parts = [blocks]
    else:
        count = e.nbytes(shape[0] * shape[1]) // e.block.itemsize
        blocks = np.frombuffer(random.bytes(count * e.block.itemsize), e.block).copy()
        for name in ("d", "dmin"):
            if name in e.block.names:
                blocks[name] = random.standard_normal(count) * 0.01
        parts = [_without(blocks, name) for name in ("dmin", "d") if name in e.block.names]
    magnitudes = np.zeros(shape, np.float32)
    for part in parts:
        magnitudes += np.abs(_decode(encoding, part, shape))
    return RandomWeight(encoding, blocks.reshape(-1).view(np.uint8), _decode(encoding, blocks, shape), magnitudes)


def _without(blocks: NDArray[Any], name: str) -> NDArray[Any]:
    """Keep one of the two terms of `d * q - dmin * m`; an encoding without minima has only the first."""
    if "dmin" not in (blocks.dtype.names or ()):
        return blocks
    blocks = blocks.copy()
    blocks[name] = 0
    return blocks


def _decode(encoding: str, blocks: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    values = np.empty(shape, np.float32)
    ggml.decode(encoding, blocks.reshape(-1).view(np.uint8), values)
    return values


def quantized(x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Round activations `[rows, in]` to 8 bits in blocks of 32, like the kernels.

    Returns:
        The rounded activations and the rounding step of each.
    """
    blocks = x.reshape(x.shape[0], -1, 32)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    q = np.rint(blocks * (np.float32(1) / scale))
    steps = np.broadcast_to(scale, blocks.shape)
    return (q.astype(np.float64) * scale).reshape(x.shape), steps.reshape(x.shape).astype(np.float64)
