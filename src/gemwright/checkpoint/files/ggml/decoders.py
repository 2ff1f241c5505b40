"""Decoders of ggml's encodings with evenly spaced values.

A block stores small integers `q`, a scale `d` and, in some encodings, a minimum `m`: the values are `d * q` or
`d * q - m`. In the K encodings a block of 256 values has sub-blocks of 16 or 32 whose scales and minima are small
integers themselves.

Source: ggml-org/llama.cpp ggml/src/ggml-quants.c (equations).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[Any]
"""`(n,)` structured array, an entry per block."""

Decoder = Callable[[Blocks, NDArray[np.float32]], None]


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Split bytes into fields, low bits first: `(n, groups, width)` -> `(n, groups, 8 // bits, width)`."""
    n, groups, width = packed.shape
    fields = np.empty((n, groups, 8 // bits, width), np.uint8)
    for i in range(8 // bits):
        np.right_shift(packed, i * bits, out=fields[:, :, i])
    return np.bitwise_and(fields, (1 << bits) - 1, out=fields)


def scale(q: NDArray[Any], d: NDArray[Any], m: NDArray[np.float32] | None, out: NDArray[np.float32]) -> None:
    """Write `d * q - m`: d and m are `(n, sub-blocks)`, q and out `(n, sub-blocks * width)` in any grouping."""
    y = out.reshape(*d.shape, -1)
    y[...] = q.reshape(y.shape)
    y *= d[..., None]
    if m is not None:
        y -= m[..., None]


def as_float(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return `(n,)` scales as a float32 column."""
    return x.astype(np.float32)[:, None]


def _q4_0(b: Blocks, out: NDArray[np.float32]) -> None:
    q = unpack(b["qs"][:, None], 4)
    q -= 8
    scale(q.view(np.int8), as_float(b["d"]), None, out)


def _q4_1(b: Blocks, out: NDArray[np.float32]) -> None:
    scale(unpack(b["qs"][:, None], 4), as_float(b["d"]), -as_float(b["m"]), out)


def _five_bits(b: Blocks) -> NDArray[np.uint8]:
    """Join the low nibbles and the fifth bits of a Q5_0 or Q5_1 block."""
    q = np.unpackbits(b["qh"], axis=1, bitorder="little")
    q <<= 4
    q |= unpack(b["qs"][:, None], 4).reshape(q.shape)
    return q


def _q5_0(b: Blocks, out: NDArray[np.float32]) -> None:
    q = _five_bits(b)
    q -= 16
    scale(q.view(np.int8), as_float(b["d"]), None, out)


def _q5_1(b: Blocks, out: NDArray[np.float32]) -> None:
    scale(_five_bits(b), as_float(b["d"]), -as_float(b["m"]), out)


def _q8_0(b: Blocks, out: NDArray[np.float32]) -> None:
    scale(b["qs"], as_float(b["d"]), None, out)


def _q2_k(b: Blocks, out: NDArray[np.float32]) -> None:
    scales = b["scales"]
    d, m = as_float(b["d"]) * (scales & 15), as_float(b["dmin"]) * (scales >> 4)
    scale(unpack(b["qs"].reshape(-1, 2, 32), 2), d, m, out)


def _q3_k(b: Blocks, out: NDArray[np.float32]) -> None:
    low = unpack(b["scales"][:, None, :8], 4).reshape(-1, 16)
    high = unpack(b["scales"][:, None, 8:], 2).reshape(-1, 16)
    scales = ((high << 4) | low).view(np.int8) - np.int8(32)
    q = unpack(b["hmask"][:, None], 1).reshape(-1, 2, 4, 32)
    q <<= 2
    q += unpack(b["qs"].reshape(-1, 2, 32), 2)
    q -= 4
    scale(q.view(np.int8), as_float(b["d"]) * scales, None, out)


def _scales_and_minima(b: Blocks) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unpack the eight 6-bit scales and minima of a Q4_K or Q5_K block: two `(n, 8)` arrays.

    Bytes 0-3 and 4-7 hold scales and minima 0-3 in their low six bits; bytes 8-11 hold the low nibbles of
    scales and minima 4-7, whose two high bits are those of bytes 0-7.
    """
    first, last = b["scales"][:, :8].reshape(-1, 2, 4), b["scales"][:, 8:]
    low = np.stack([last & 15, last >> 4], axis=1)
    both = np.concatenate([first & 63, (first >> 6 << 4) | low], axis=2)
    return as_float(b["d"]) * both[:, 0], as_float(b["dmin"]) * both[:, 1]


def _q4_k(b: Blocks, out: NDArray[np.float32]) -> None:
    scale(unpack(b["qs"].reshape(-1, 4, 32), 4), *_scales_and_minima(b), out)


def _q5_k(b: Blocks, out: NDArray[np.float32]) -> None:
    q = unpack(b["qh"][:, None], 1).reshape(-1, 4, 2, 32)
    q <<= 4
    q |= unpack(b["qs"].reshape(-1, 4, 32), 4)
    scale(q, *_scales_and_minima(b), out)


def _q6_k(b: Blocks, out: NDArray[np.float32]) -> None:
    q = unpack(b["qh"].reshape(-1, 2, 32), 2)
    q <<= 4
    q |= unpack(b["ql"].reshape(-1, 2, 64), 4).reshape(q.shape)
    q -= 32
    scale(q.view(np.int8), as_float(b["d"]) * b["scales"], None, out)


def _tq1_0(b: Blocks, out: NDArray[np.float32]) -> None:
    """A byte is a fraction of 256 whose first five (in `qh` four) digits to base 3 are values plus one."""
    parts = (b["qs"][:, :32], 5), (b["qs"][:, 32:], 5), (b["qh"], 4)
    digits = [(part[:, None] * _POWERS[:count, None]).reshape(len(b), -1) for part, count in parts]
    q = (np.concatenate(digits, axis=1) * np.uint16(3) >> 8).astype(np.int8)
    q -= 1
    scale(q, as_float(b["d"]), None, out)


_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _tq2_0(b: Blocks, out: NDArray[np.float32]) -> None:
    q = unpack(b["qs"].reshape(-1, 2, 32), 2)
    q -= 1
    scale(q.view(np.int8), as_float(b["d"]), None, out)


def _q2_0(b: Blocks, out: NDArray[np.float32]) -> None:
    q = unpack(b["qs"][:, :, None], 2)
    q -= 1
    scale(q.view(np.int8), as_float(b["d"]), None, out)


def _q1_0(b: Blocks, out: NDArray[np.float32]) -> None:
    q = unpack(b["qs"][:, :, None], 1)
    q <<= 1
    q -= 1
    scale(q.view(np.int8), as_float(b["d"]), None, out)


DECODERS: dict[str, Decoder] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
}
"""Functions that write the values of `(n,)` blocks to an `(n, elements)` float32 array, by encoding."""
