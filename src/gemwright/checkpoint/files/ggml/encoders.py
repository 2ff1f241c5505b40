"""Encoders of ggml's encodings."""

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.ggml.decoders import Blocks
from gemwright.checkpoint.files.ggml.layouts import LAYOUTS


def _inverse(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / d, or 0 if d is zero or so small that 1 / d is infinite."""
    inverse = 1 / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _to_q4_0(x: NDArray[np.float32]) -> Blocks:
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = extreme / np.float32(-8)
    q = np.minimum((x * _inverse(d) + np.float32(8.5)).astype(np.uint8), 15)
    blocks = np.empty(len(x), LAYOUTS["Q4_0"].block)
    blocks["d"] = d[:, 0]
    blocks["qs"] = q[:, :16] | q[:, 16:] << 4
    return blocks


def _to_q8_0(x: NDArray[np.float32]) -> Blocks:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    whole = np.trunc(scaled)
    whole += np.trunc(2 * (scaled - whole))  # halves round away from zero
    blocks = np.empty(len(x), LAYOUTS["Q8_0"].block)
    blocks["d"] = d[:, 0]
    blocks["qs"] = whole
    return blocks


ENCODERS = {"Q4_0": _to_q4_0, "Q8_0": _to_q8_0}
