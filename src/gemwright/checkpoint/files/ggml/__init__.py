"""Block encodings of ggml, the tensor library under GGUF files: numpy decoders and encoders.

A row of a tensor is a whole number of blocks.

Source: ggml-org/llama.cpp ggml/src/ggml-common.h (block layouts), ggml/src/ggml-quants.c (equations).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.ggml import codebooks, decoders
from gemwright.checkpoint.files.ggml.decoders import Blocks, Decoder
from gemwright.checkpoint.files.ggml.encoders import ENCODERS, Encoder
from gemwright.checkpoint.files.ggml.layouts import LAYOUTS
from gemwright.errors import CheckpointError

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
        encode: Return `(n,)` blocks of `(n, elements)` values and their importance; None if only decoding is supported.
    """

    type_id: int
    elements: int
    block: np.dtype[Any]
    decode: Decoder
    encode: Encoder | None = None

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


def encode(encoding: str, values: NDArray[Any], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """Encode an array of rows of whole blocks, with a thread per processor.

    Args:
        encoding: A key of `ENCODINGS` that has an `encode`.
        values: Any float type and shape.
        importance: The weight of squared errors in each column, of the length of a row.

    Returns:
        The bytes, `(nbytes,)`.

    Raises:
        CheckpointError: A value is not finite or too large for the encoding.
    """
    e = ENCODINGS[encoding]
    assert e.encode is not None
    assert values.shape[-1] % e.elements == 0
    rows = values.reshape(-1, e.elements)
    columns = None if importance is None else importance.reshape(-1, e.elements)
    blocks = np.empty(len(rows), e.block)
    step = max(1, CACHE_CHUNK // e.elements)

    def encode_part(start: int) -> None:
        part = rows[start : start + step].astype(np.float32)
        wanted = None if columns is None else columns[np.arange(start, start + len(part)) % len(columns)]
        assert e.encode is not None
        with np.errstate(all="ignore"):
            blocks[start : start + step] = encoded = e.encode(part, wanted)
        scales = [encoded[name] for name in ("d", "dmin", "m") if name in e.block.names] if e.block.names else [encoded]
        if not all(np.isfinite(scale).all() for scale in scales):
            raise CheckpointError(
                f"values that are not finite, or too large for {encoding}, cannot be written; "
                "repair the model or choose F32"
            )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(encode_part, range(0, len(rows), step)))
    return blocks.view(np.uint8)


def _plain(dtype: Any, type_id: int) -> Encoding:
    def decode(blocks: Blocks, out: NDArray[np.float32]) -> None:
        out[:, 0] = blocks

    def encode(x: NDArray[np.float32], importance: NDArray[np.float32] | None) -> Blocks:
        return x[:, 0].astype(dtype)

    return Encoding(type_id, 1, np.dtype(dtype), decode, encode)


_DECODERS = decoders.DECODERS | codebooks.DECODERS

ENCODINGS = {
    "F32": _plain(np.float32, 0),
    "F16": _plain(np.float16, 1),
    "BF16": _plain(ml_dtypes.bfloat16, 30),
    **{name: Encoding(*layout, _DECODERS[name], ENCODERS.get(name)) for name, layout in LAYOUTS.items()},
}

UNSUPPORTED = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
"""Names of the encodings that hold no weights, for errors."""
