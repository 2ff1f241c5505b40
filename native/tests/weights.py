"""Random weights in every encoding, with the values of the decoder of the `gguf` package as the reference."""

from dataclasses import dataclass

import gguf
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Offsets of the float16 scales in a block; in the other block formats there is one, at 0."""


@dataclass(frozen=True)
class RandomWeight:
    """A weight `[out, in]`: its bytes, its values, and the sum of the magnitudes of the terms of each value."""

    encoding: str
    raw: NDArray[np.uint8]
    values: NDArray[np.float32]
    magnitudes: NDArray[np.float32]


def block(encoding: str) -> int:
    """Return the number of values in a block."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]][0]


def random_weight(encoding: str, shape: tuple[int, int], seed: int = 0) -> RandomWeight:
    """Return a weight with uniform integers and normally distributed scales around zero."""
    random = np.random.default_rng(seed)
    if encoding in PLAIN:
        raw = random.standard_normal(shape).astype(PLAIN[encoding]).reshape(-1).view(np.uint8)
        values = _decode(encoding, raw, shape)
        return RandomWeight(encoding, raw, values, np.abs(values))
    values_per_block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // values_per_block, nbytes), np.uint8)
    scales = SCALES.get(encoding, (0,))
    for offset in scales:
        halves = (random.standard_normal(len(blocks)) * 0.01).astype(np.float16)
        blocks[:, offset : offset + 2] = halves[:, None].view(np.uint8)
    magnitudes = np.zeros(shape, np.float32)
    for offset in scales:  # one of the two terms of d * q - dmin * m at a time
        term = blocks.copy()
        for other in set(scales) - {offset}:
            term[:, other : other + 2] = 0
        magnitudes += np.abs(_decode(encoding, term, shape))
    return RandomWeight(encoding, blocks.reshape(-1), _decode(encoding, blocks, shape), magnitudes)


def _decode(encoding: str, raw: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
    return gguf.quants.dequantize(raw.reshape(shape[0], -1), gguf.GGMLQuantizationType[encoding])


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
