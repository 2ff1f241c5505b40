"""Block encodings of ggml, the tensor library under GGUF files: numpy decoders and encoders.

A row of a tensor is a whole number of blocks. A block stores small integers `q`, a scale `d` and, in some encodings, a
minimum `m`: the values are `d * q` or `d * q - m`. In the K encodings a block of 256 values has sub-blocks of 16 or 32
whose scales and minima are small integers themselves.

Source: ggml-org/llama.cpp ggml/src/ggml-common.h (block layouts), ggml/src/ggml-quants.c (equations).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError

Blocks = NDArray[Any]
"""`(n,)` structured array, an entry per block."""

CACHE_CHUNK = 1 << 16
"""Number of values decoded, encoded or rounded at a time: in float32 they stay in a core's L2 cache."""


@dataclass(frozen=True)
class Encoding:
    """The block layout of an encoding.

    Attributes:
        type_id: Number of the encoding in ggml.
        elements: Number of values in a block.
        block: Layout of a block.
        decode: Write the values of `(n,)` blocks to an `(n, elements)` float32 array.
        encode: Return `(n,)` blocks of `(n, elements)` float32 values; None if only decoding is supported.
    """

    type_id: int
    elements: int
    block: np.dtype[Any]
    decode: Callable[[Blocks, NDArray[np.float32]], None]
    encode: Callable[[NDArray[np.float32]], Blocks] | None = None

    def nbytes(self, count: int) -> int:
        """Return the size in bytes of `count` values, a multiple of `elements`."""
        return count // self.elements * self.block.itemsize


def decode(encoding: str, raw: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decode whole blocks. Threads may decode different parts of a tensor at the same time.

    Args:
        encoding: A key of `ENCODINGS`.
        raw: The blocks' bytes, contiguous, of any shape.
        out: Output: float32 or bfloat16, C-contiguous, of any shape with the right size.
    """
    e = ENCODINGS[encoding]
    assert out.flags.c_contiguous
    assert out.dtype in (np.float32, ml_dtypes.bfloat16)
    assert out.size % e.elements == 0
    assert raw.size == e.nbytes(out.size)
    blocks = raw.reshape(-1).view(e.block)
    values = out.reshape(-1, e.elements)
    step = max(1, CACHE_CHUNK // e.elements)
    scratch = None if out.dtype == np.float32 else np.empty((step, e.elements), np.float32)
    with np.errstate(all="ignore"):  # infinite scales give values that are not finite
        for start in range(0, len(blocks), step):
            part = values[start : start + step]
            if scratch is None:
                e.decode(blocks[start : start + step], part)
            else:
                e.decode(blocks[start : start + step], scratch[: len(part)])
                part[...] = scratch[: len(part)]


def encode(encoding: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Encode an array whose size is a multiple of the encoding's block.

    Args:
        encoding: A key of `ENCODINGS` that has an `encode`.
        values: Any float type and shape.

    Returns:
        The bytes, `(nbytes,)`.

    Raises:
        CheckpointError: A value is not finite or too large for the encoding.
    """
    e = ENCODINGS[encoding]
    assert e.encode is not None
    assert values.size % e.elements == 0
    rows = values.reshape(-1, e.elements)
    blocks = np.empty(len(rows), e.block)
    step = max(1, CACHE_CHUNK // e.elements)
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), step):
            part = e.encode(rows[start : start + step].astype(np.float32))
            if not np.isfinite(part["d"] if part.dtype.names else part).all():
                raise CheckpointError(
                    f"values that are not finite, or too large for {encoding}, cannot be written; "
                    "repair the model or choose F32"
                )
            blocks[start : start + step] = part
    return blocks.view(np.uint8)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Split bytes into fields, low bits first: `(n, groups, width)` -> `(n, groups, 8 // bits, width)`."""
    n, groups, width = packed.shape
    fields = np.empty((n, groups, 8 // bits, width), np.uint8)
    for i in range(8 // bits):
        np.right_shift(packed, i * bits, out=fields[:, :, i])
    return np.bitwise_and(fields, (1 << bits) - 1, out=fields)


def _scale(q: NDArray[Any], d: NDArray[np.float32], m: NDArray[np.float32] | None, out: NDArray[np.float32]) -> None:
    """Write `d * q - m`: d and m are `(n, sub-blocks)`, q and out `(n, sub-blocks * width)` in any grouping."""
    y = out.reshape(*d.shape, -1)
    y[...] = q.reshape(y.shape)
    y *= d[..., None]
    if m is not None:
        y -= m[..., None]


def _float(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return `(n,)` scales as a float32 column."""
    return x.astype(np.float32)[:, None]


def _plain(dtype: Any, type_id: int) -> Encoding:
    def decode(blocks: Blocks, out: NDArray[np.float32]) -> None:
        out[:, 0] = blocks

    def encode(x: NDArray[np.float32]) -> Blocks:
        return x[:, 0].astype(dtype)

    return Encoding(type_id, 1, np.dtype(dtype), decode, encode)


def _q4_0(b: Blocks, out: NDArray[np.float32]) -> None:
    q = _unpack(b["qs"][:, None], 4)
    q -= 8
    _scale(q.view(np.int8), _float(b["d"]), None, out)


def _q4_1(b: Blocks, out: NDArray[np.float32]) -> None:
    _scale(_unpack(b["qs"][:, None], 4), _float(b["d"]), -_float(b["m"]), out)


def _five_bits(b: Blocks) -> NDArray[np.uint8]:
    """Join the low nibbles and the fifth bits of a Q5_0 or Q5_1 block."""
    q = np.unpackbits(b["qh"], axis=1, bitorder="little")
    q <<= 4
    q |= _unpack(b["qs"][:, None], 4).reshape(q.shape)
    return q


def _q5_0(b: Blocks, out: NDArray[np.float32]) -> None:
    q = _five_bits(b)
    q -= 16
    _scale(q.view(np.int8), _float(b["d"]), None, out)


def _q5_1(b: Blocks, out: NDArray[np.float32]) -> None:
    _scale(_five_bits(b), _float(b["d"]), -_float(b["m"]), out)


def _q8_0(b: Blocks, out: NDArray[np.float32]) -> None:
    _scale(b["qs"], _float(b["d"]), None, out)


def _q2_k(b: Blocks, out: NDArray[np.float32]) -> None:
    scales = b["scales"]
    d, m = _float(b["d"]) * (scales & 15), _float(b["dmin"]) * (scales >> 4)
    _scale(_unpack(b["qs"].reshape(-1, 2, 32), 2), d, m, out)


def _q3_k(b: Blocks, out: NDArray[np.float32]) -> None:
    low = _unpack(b["scales"][:, None, :8], 4).reshape(-1, 16)
    high = _unpack(b["scales"][:, None, 8:], 2).reshape(-1, 16)
    scales = ((high << 4) | low).view(np.int8) - np.int8(32)
    q = _unpack(b["hmask"][:, None], 1).reshape(-1, 2, 4, 32)
    q <<= 2
    q += _unpack(b["qs"].reshape(-1, 2, 32), 2)
    q -= 4
    _scale(q.view(np.int8), _float(b["d"]) * scales, None, out)


def _scales_and_minima(b: Blocks) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unpack the eight 6-bit scales and minima of a Q4_K or Q5_K block: two `(n, 8)` arrays.

    Bytes 0-3 and 4-7 hold scales and minima 0-3 in their low six bits; bytes 8-11 hold the low nibbles of
    scales and minima 4-7, whose two high bits are those of bytes 0-7.
    """
    first, last = b["scales"][:, :8].reshape(-1, 2, 4), b["scales"][:, 8:]
    low = np.stack([last & 15, last >> 4], axis=1)
    both = np.concatenate([first & 63, (first >> 6 << 4) | low], axis=2)
    return _float(b["d"]) * both[:, 0], _float(b["dmin"]) * both[:, 1]


def _q4_k(b: Blocks, out: NDArray[np.float32]) -> None:
    _scale(_unpack(b["qs"].reshape(-1, 4, 32), 4), *_scales_and_minima(b), out)


def _q5_k(b: Blocks, out: NDArray[np.float32]) -> None:
    q = _unpack(b["qh"][:, None], 1).reshape(-1, 4, 2, 32)
    q <<= 4
    q |= _unpack(b["qs"].reshape(-1, 4, 32), 4)
    _scale(q, *_scales_and_minima(b), out)


def _q6_k(b: Blocks, out: NDArray[np.float32]) -> None:
    q = _unpack(b["qh"].reshape(-1, 2, 32), 2)
    q <<= 4
    q |= _unpack(b["ql"].reshape(-1, 2, 64), 4).reshape(q.shape)
    q -= 32
    _scale(q.view(np.int8), _float(b["d"]) * b["scales"], None, out)


def _inverse(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / d, or 0 if d is zero or so small that 1 / d is infinite."""
    inverse = 1 / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _to_q4_0(x: NDArray[np.float32]) -> Blocks:
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = extreme / np.float32(-8)
    q = np.minimum((x * _inverse(d) + np.float32(8.5)).astype(np.uint8), 15)
    blocks = np.empty(len(x), _Q4_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = q[:, :16] | q[:, 16:] << 4
    return blocks


def _to_q8_0(x: NDArray[np.float32]) -> Blocks:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    whole = np.trunc(scaled)
    whole += np.trunc(2 * (scaled - whole))  # halves round away from zero
    blocks = np.empty(len(x), _Q8_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = whole
    return blocks


_Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
_Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
_Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
_Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

ENCODINGS = {
    "F32": _plain(np.float32, 0),
    "F16": _plain(np.float16, 1),
    "BF16": _plain(ml_dtypes.bfloat16, 30),
    "Q4_0": Encoding(2, 32, _Q4_0, _q4_0, _to_q4_0),
    "Q4_1": Encoding(3, 32, _Q4_1, _q4_1),
    "Q5_0": Encoding(6, 32, _Q5_0, _q5_0),
    "Q5_1": Encoding(7, 32, _Q5_1, _q5_1),
    "Q8_0": Encoding(8, 32, _Q8_0, _q8_0, _to_q8_0),
    "Q2_K": Encoding(10, 256, _Q2_K, _q2_k),
    "Q3_K": Encoding(11, 256, _Q3_K, _q3_k),
    "Q4_K": Encoding(12, 256, _Q4_K, _q4_k),
    "Q5_K": Encoding(13, 256, _Q5_K, _q5_k),
    "Q6_K": Encoding(14, 256, _Q6_K, _q6_k),
}

UNSUPPORTED = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Names of the encodings that cannot be read, for errors."""
