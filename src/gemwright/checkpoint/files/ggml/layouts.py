"""Block layouts of ggml's encodings. Source: ggml-org/llama.cpp ggml/src/ggml-common.h, ggml/include/ggml.h."""

from typing import Any, NamedTuple

import numpy as np


class Layout(NamedTuple):
    """The layout of a block.

    Attributes:
        type_id: Number of the encoding in ggml.
        elements: Number of values in a block.
        block: The fields of a block.
    """

    type_id: int
    elements: int
    block: np.dtype[Any]


LAYOUTS = {
    "Q4_0": Layout(2, 32, np.dtype([("d", "<f2"), ("qs", "u1", 16)])),
    "Q4_1": Layout(3, 32, np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])),
    "Q5_0": Layout(6, 32, np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])),
    "Q5_1": Layout(7, 32, np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])),
    "Q8_0": Layout(8, 32, np.dtype([("d", "<f2"), ("qs", "i1", 32)])),
    "Q2_K": Layout(10, 256, np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])),
    "Q3_K": Layout(11, 256, np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])),
    "Q4_K": Layout(12, 256, np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])),
    "Q5_K": Layout(13, 256, np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
    )),
    "Q6_K": Layout(14, 256, np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])),
    "IQ2_XXS": Layout(16, 256, np.dtype([("d", "<f2"), ("groups", [("qs", "u1", 4), ("signs", "<u4")], 8)])),
    "IQ2_XS": Layout(17, 256, np.dtype([("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)])),
    "IQ3_XXS": Layout(18, 256, np.dtype([("d", "<f2"), ("qs", "u1", 64), ("signs", "<u4", 8)])),
    "IQ1_S": Layout(19, 256, np.dtype([("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)])),
    "IQ4_NL": Layout(20, 32, np.dtype([("d", "<f2"), ("qs", "u1", 16)])),
    "IQ3_S": Layout(21, 256, np.dtype(
        [("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)]
    )),
    "IQ2_S": Layout(22, 256, np.dtype(
        [("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)]
    )),
    "IQ4_XS": Layout(23, 256, np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])),
    "IQ1_M": Layout(29, 256, np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)])),
    "TQ1_0": Layout(34, 256, np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])),
    "TQ2_0": Layout(35, 256, np.dtype([("qs", "u1", 64), ("d", "<f2")])),
    "MXFP4": Layout(39, 32, np.dtype([("e", "u1"), ("qs", "u1", 16)])),
    "NVFP4": Layout(40, 64, np.dtype([("d", "u1", 4), ("qs", "u1", 32)])),
    "Q1_0": Layout(41, 128, np.dtype([("d", "<f2"), ("qs", "u1", 16)])),
    "Q2_0": Layout(42, 64, np.dtype([("d", "<f2"), ("qs", "u1", 16)])),
}  # fmt: skip
