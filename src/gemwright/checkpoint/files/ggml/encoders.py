"""Encoders of ggml's encodings.

`fitting` finds the scales and minima of a block. With an importance matrix the weight of an error is the importance of
its column times `sqrt(2 * s + x * x)`, for the value x and the mean square s of the block, as in llama.cpp.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.ggml import fitting
from gemwright.checkpoint.files.ggml.codebooks import IQ4_VALUES
from gemwright.checkpoint.files.ggml.decoders import Blocks
from gemwright.checkpoint.files.ggml.fitting import Floats, Levels, inverse
from gemwright.checkpoint.files.ggml.layouts import LAYOUTS

Encoder = Callable[[Floats, Floats | None], Blocks]
"""A function of the values of blocks and their importance, both `(n, elements)`."""

_IQ4 = Levels(-127, 113, IQ4_VALUES)
_IQ4_REACHES = (-127, *range(-134, -119), *range(108, 119, 2))


def _columns(x: Floats, groups: int) -> Floats:
    """Move the position in a group first: `(n, elements)` -> `(width, n, groups)`."""
    return np.ascontiguousarray(x.reshape(len(x), groups, -1).transpose(2, 0, 1))


def _rows(q: Floats, offset: int = 0) -> NDArray[Any]:
    """Undo `_columns`: `(width, n, groups)` -> `(n, elements)`, as unsigned integers after adding an offset."""
    return (q + np.float32(offset)).astype(np.uint8).transpose(1, 2, 0).reshape(q.shape[1], -1)


def _pack(fields: NDArray[Any], bits: int, *shape: int) -> NDArray[Any]:
    """Join the low bits of fields, the inverse of `unpack`: `(n, groups, 8 // bits, width)` -> `(n, bytes)`."""
    fields = (fields & ((1 << bits) - 1)).reshape(len(fields), *shape)
    shifts = np.arange(0, 8, bits, np.uint8)[:, None]
    return np.bitwise_or.reduce(fields << shifts, axis=2).reshape(len(fields), -1)


def _weigh(x: Floats, importance: Floats) -> Floats:
    return importance * np.sqrt(2 * np.square(x).mean(axis=1, keepdims=True) + np.square(x))


def _squares(x: Floats) -> Floats:
    """Return weights that follow the squares of the values, though the smallest values count too."""
    squares = np.square(x)
    return squares + squares.mean(axis=1, keepdims=True)


def _to_q8_0(x: Floats, importance: Floats | None) -> Blocks:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * inverse(d)
    whole = np.trunc(scaled)
    whole += np.trunc(2 * (scaled - whole))  # halves round away from zero
    blocks = np.empty(len(x), LAYOUTS["Q8_0"].block)
    blocks["d"] = d[:, 0]
    blocks["qs"] = whole
    return blocks


def _symmetric(x: Floats, w: Floats, levels: Levels, reaches: Any) -> tuple[Floats, Floats]:
    """Return the scales `(n,)` and levels `(width, n, 1)` of blocks without sub-blocks."""
    x, w = _columns(x, 1), _columns(w, 1)
    d = fitting.refine_scales(x, w, levels, fitting.fit_scales(x, w, levels, reaches))
    return d[:, 0], levels.round(x * inverse(d))


def _weights(x: Floats, importance: Floats | None, default: Floats) -> Floats:
    return default if importance is None else _weigh(x, importance)


def _to_q4_0(x: Floats, importance: Floats | None) -> Blocks:
    blocks = np.empty(len(x), LAYOUTS["Q4_0"].block)
    if importance is None:  # the value of the largest magnitude is exact, as in llama.cpp
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
        d = extreme / np.float32(-8)
        q = np.minimum((x * inverse(d) + np.float32(8.5)).astype(np.uint8), 15)
        blocks["d"], blocks["qs"] = d[:, 0], q[:, :16] | q[:, 16:] << 4
        return blocks
    w = _weigh(x, importance)
    d, q = _symmetric(x, w, Levels(-8, 7), (-8, -8.6, -8.3, -7.7, -7.4, -7, -6.6, 8, 7.7, 7.4, 7.1, 6.7))
    blocks["d"], blocks["qs"] = d, _pack(_rows(q, 8), 4, 1, 2, 16)
    return blocks


def _to_q5_0(x: Floats, importance: Floats | None) -> Blocks:
    w = _weights(x, importance, np.ones_like(x))
    d, q = _symmetric(x, w, Levels(-16, 15), (-16, -15.5, -15, -14.5, -16.5, 16, 15.5, 15, 14.5))
    blocks, q = np.empty(len(x), LAYOUTS["Q5_0"].block), _rows(q, 16)
    blocks["d"], blocks["qs"] = d, _pack(q, 4, 1, 2, 16)
    blocks["qh"] = np.packbits(q >> 4, axis=1, bitorder="little")
    return blocks


def _affine(x: Floats, importance: Floats | None, highest: int) -> tuple[Floats, Floats, NDArray[Any]]:
    w = _columns(_weights(x, importance, np.ones_like(x)), 1)
    x = _columns(x, 1)
    scale, m = fitting.fit_affine(x, w, highest, _reaches(highest), negative=True)
    scale, m = fitting.refine_affine(x, w, highest, scale, m)
    return scale[:, 0], -m[:, 0], _rows(fitting.affine_levels(x, highest, scale, m))


def _reaches(highest: int) -> list[float]:
    return [highest + change / 10 for change in (0, *range(-9, 0), *range(1, 10))]


def _to_q4_1(x: Floats, importance: Floats | None) -> Blocks:
    blocks = np.empty(len(x), LAYOUTS["Q4_1"].block)
    blocks["d"], blocks["m"], q = _affine(x, importance, 15)
    blocks["qs"] = _pack(q, 4, 1, 2, 16)
    return blocks


def _to_q5_1(x: Floats, importance: Floats | None) -> Blocks:
    blocks = np.empty(len(x), LAYOUTS["Q5_1"].block)
    blocks["d"], blocks["m"], q = _affine(x, importance, 31)
    blocks["qs"] = _pack(q, 4, 1, 2, 16)
    blocks["qh"] = np.packbits(q >> 4, axis=1, bitorder="little")
    return blocks


def _to_iq4_nl(x: Floats, importance: Floats | None) -> Blocks:
    w = _weights(x, importance, _squares(x))
    d, q = _symmetric(x, w, _IQ4, _IQ4_REACHES)
    blocks = np.empty(len(x), LAYOUTS["IQ4_NL"].block)
    blocks["d"], blocks["qs"] = d, _pack(_iq4_index(q), 4, 1, 2, 16)
    return blocks


def _iq4_index(q: Floats) -> NDArray[Any]:
    return np.searchsorted(IQ4_VALUES, _rows(q, 128).astype(np.int16) - 128).astype(np.uint8)


def _super(
    x: Floats, w: Floats, groups: int, levels: Levels, reaches: Any, limits: tuple[int, int]
) -> tuple[Floats, NDArray[Any], Floats]:
    """Return the scales `(n,)`, integer scales `(n, groups)` and levels `(width, n, groups)` of blocks."""
    x, w = _columns(x, groups), _columns(w, groups)
    scales = fitting.fit_scales(x, w, levels, reaches)
    d, steps = fitting.fit_integer_scales(x, w, levels, scales, limits)
    return d[:, 0], steps.astype(np.int8), levels.round(x * inverse(d * steps))


def _to_q3_k(x: Floats, importance: Floats | None) -> Blocks:
    reaches = (-4, -4.6, -4.4, -4.2, -3.8, -3.6, -3.4, -3.2, -3, 4.4, 4.2, 4, 3.8, 3.6, 3.4, 3.2, 3, 2.8)
    d, steps, q = _super(x, _weights(x, importance, _squares(x)), 16, Levels(-4, 3), reaches, (-32, 31))
    blocks, q, steps = np.empty(len(x), LAYOUTS["Q3_K"].block), _rows(q, 4), (steps + 32).astype(np.uint8)
    blocks["d"], blocks["qs"], blocks["hmask"] = d, _pack(q, 2, 2, 4, 32), _pack(q >> 2, 1, 1, 8, 32)
    blocks["scales"][:, :8] = _pack(steps, 4, 1, 2, 8)
    blocks["scales"][:, 8:] = _pack(steps >> 4, 2, 1, 4, 4)
    return blocks


def _to_q6_k(x: Floats, importance: Floats | None) -> Blocks:
    reaches = (-32, *np.arange(-32.9, -30, 0.2), *np.arange(30, 33, 0.4))
    d, steps, q = _super(x, _weights(x, importance, np.square(x)), 16, Levels(-32, 31), reaches, (-128, 127))
    blocks, q = np.empty(len(x), LAYOUTS["Q6_K"].block), _rows(q, 32)
    blocks["d"], blocks["scales"] = d, steps
    blocks["ql"], blocks["qh"] = _pack(q, 4, 2, 2, 64), _pack(q >> 4, 2, 2, 4, 32)
    return blocks


def _to_iq4_xs(x: Floats, importance: Floats | None) -> Blocks:
    w = _weights(x, importance, _squares(x))
    d, steps, q = _super(x, w, 8, _IQ4, _IQ4_REACHES, (-32, 31))
    blocks, steps = np.empty(len(x), LAYOUTS["IQ4_XS"].block), (steps + 32).astype(np.uint8)
    blocks["d"], blocks["qs"], blocks["scales_l"] = d, _pack(_iq4_index(q), 4, 8, 2, 16), _pack(steps, 4, 4, 2, 1)
    high = (steps >> 4).astype(np.uint16) << np.arange(0, 16, 2, np.uint16)
    blocks["scales_h"] = np.bitwise_or.reduce(high, axis=1)
    return blocks


def _super_affine(
    x: Floats, importance: Floats | None, groups: int, highest: int, limit: int
) -> tuple[Floats, Floats, NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return d and dmin `(n,)`, the integer scales and minima `(n, groups)` and q `(n, 256)` of blocks."""
    root = np.sqrt(np.square(x).reshape(len(x), groups, -1).mean(axis=2)).repeat(256 // groups, axis=1)
    w = _columns(_weights(x, importance, root + np.abs(x)), groups)
    x = _columns(x, groups)
    scales, minima = fitting.fit_affine(x, w, highest, _reaches(highest), negative=False)
    d, dmin, steps, offsets = fitting.fit_integer_affine(x, w, highest, scales, minima, limit)
    q = fitting.affine_levels(x, highest, d * steps, dmin * offsets)
    return d[:, 0], dmin[:, 0], steps.astype(np.uint8), offsets.astype(np.uint8), _rows(q)


def _to_q2_k(x: Floats, importance: Floats | None) -> Blocks:
    blocks = np.empty(len(x), LAYOUTS["Q2_K"].block)
    blocks["d"], blocks["dmin"], steps, offsets, q = _super_affine(x, importance, 16, 3, 15)
    blocks["scales"], blocks["qs"] = steps | offsets << 4, _pack(q, 2, 2, 4, 32)
    return blocks


def _pack_six_bits(steps: NDArray[Any], offsets: NDArray[Any]) -> NDArray[Any]:
    """Pack the scales and minima of a Q4_K or Q5_K block, `(n, 8)` each, into `(n, 12)` bytes."""
    first = np.concatenate([steps[:, :4], offsets[:, :4]], axis=1)
    last = np.concatenate([steps[:, 4:], offsets[:, 4:]], axis=1)
    low = (last[:, :4] & 15) | (last[:, 4:] & 15) << 4
    return np.concatenate([first | last >> 4 << 6, low], axis=1)


def _to_q4_k(x: Floats, importance: Floats | None) -> Blocks:
    blocks = np.empty(len(x), LAYOUTS["Q4_K"].block)
    blocks["d"], blocks["dmin"], steps, offsets, q = _super_affine(x, importance, 8, 15, 63)
    blocks["scales"], blocks["qs"] = _pack_six_bits(steps, offsets), _pack(q, 4, 4, 2, 32)
    return blocks


def _to_q5_k(x: Floats, importance: Floats | None) -> Blocks:
    blocks = np.empty(len(x), LAYOUTS["Q5_K"].block)
    blocks["d"], blocks["dmin"], steps, offsets, q = _super_affine(x, importance, 8, 31, 63)
    blocks["scales"], blocks["qs"] = _pack_six_bits(steps, offsets), _pack(q, 4, 4, 2, 32)
    blocks["qh"] = _pack(q >> 4, 1, 1, 8, 32)
    return blocks


ENCODERS: dict[str, Encoder] = {
    "Q4_0": _to_q4_0,
    "Q4_1": _to_q4_1,
    "Q5_0": _to_q5_0,
    "Q5_1": _to_q5_1,
    "Q8_0": _to_q8_0,
    "Q2_K": _to_q2_k,
    "Q3_K": _to_q3_k,
    "Q4_K": _to_q4_k,
    "Q5_K": _to_q5_k,
    "Q6_K": _to_q6_k,
    "IQ4_NL": _to_iq4_nl,
    "IQ4_XS": _to_iq4_xs,
}
