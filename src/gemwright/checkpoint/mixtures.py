"""The encoding of each tensor in a quantized GGUF file.

A name such as q4_k_m stands for a mixture: the tensors that suffer most from rounding get more bits.

Source: ggml-org/llama.cpp src/llama-quant.cpp (rules), include/llama.h (`llama_ftype`).
"""

from typing import NamedTuple

from gemwright.checkpoint.files.ggml import ENCODINGS
from gemwright.checkpoint.names.mapping import split
from gemwright.model.config import Attention, Config


class Mixture(NamedTuple):
    """The encodings of a GGUF file.

    Attributes:
        encoding: The encoding of most matrices.
        file_type: Value of `general.file_type`.
    """

    encoding: str
    file_type: int


MIXTURES = {
    "float32": Mixture("F32", 0),
    "float16": Mixture("F16", 1),
    "bfloat16": Mixture("BF16", 32),
    "q8_0": Mixture("Q8_0", 7),
    "q6_k": Mixture("Q6_K", 18),
    "q5_k_m": Mixture("Q5_K", 17),
    "q5_k_s": Mixture("Q5_K", 16),
    "q5_1": Mixture("Q5_1", 9),
    "q5_0": Mixture("Q5_0", 8),
    "q4_k_m": Mixture("Q4_K", 15),
    "q4_k_s": Mixture("Q4_K", 14),
    "q4_1": Mixture("Q4_1", 3),
    "q4_0": Mixture("Q4_0", 2),
    "iq4_nl": Mixture("IQ4_NL", 25),
    "iq4_xs": Mixture("IQ4_XS", 30),
    "q3_k_l": Mixture("Q3_K", 13),
    "q3_k_m": Mixture("Q3_K", 12),
    "q3_k_s": Mixture("Q3_K", 11),
    "q2_k": Mixture("Q2_K", 10),
}
"""The mixtures by dtype."""

FALLBACKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Encodings in blocks of 32 for rows that are no multiple of 256."""


def choose_encoding(dtype: str, path: str, width: int, config: Config, weighted: bool = False) -> str:
    """Return the encoding of a matrix.

    Args:
        dtype: A key of `MIXTURES`.
        path: Path of the weight.
        width: Length of a row.
        config: The model.
        weighted: Whether an importance matrix is used.
    """
    encoding = MIXTURES[dtype].encoding
    if dtype in ("float32", "float16", "bfloat16"):
        return encoding
    layer, leaf = split(path)
    if layer is not None:
        encoding = _layer_encoding(dtype, layer, leaf, config, weighted) or encoding
    elif path == ("embed" if config.tied else "head"):
        encoding = encoding if encoding == "Q8_0" else "Q6_K"
    if width % ENCODINGS[encoding].elements:
        encoding = FALLBACKS.get(encoding, "F16")
    return "F16" if width % ENCODINGS[encoding].elements else encoding


def _layer_encoding(dtype: str, layer: int, leaf: str, config: Config, weighted: bool) -> str | None:
    """Return the encoding of a matrix that differs from that of most, else None."""
    depth = len(config.layers)
    more = layer < depth // 8 or layer >= 7 * depth // 8 or (layer - depth // 8) % 3 == 2
    early = layer < depth // 8
    mixer = config.layers[layer].mixer
    grouped = isinstance(mixer, Attention) and mixer.heads >= 4 * mixer.kv_heads
    match leaf, dtype:
        case ("mixer.v" | "mlp.down", "q4_k_m" | "q5_k_m"):
            return "Q6_K" if more else None
        case "mixer.v", "q4_k_s":
            return "Q5_K" if layer < 4 else None
        case "mixer.v", "q3_k_m":
            return "Q5_K" if layer < 2 else "Q4_K"
        case "mixer.v", "q2_k":
            return "Q4_K" if grouped else "Q3_K"
        case "mixer.v", "iq4_nl" | "iq4_xs":
            return "Q5_K" if grouped else None
        case "mlp.down", "q3_k_m":
            return "Q5_K" if layer < depth // 16 else "Q4_K"
        case "mlp.down", "q4_k_s":
            return "Q5_K" if early else None
        case "mlp.down", "iq4_nl" | "iq4_xs":
            return "Q5_K" if early and not weighted else None
        case "mlp.down", "q4_0" | "q5_0":
            return dtype.replace("_0", "_1").upper() if early and weighted else None
        case ("mixer.v" | "mlp.down" | "mixer.o", "q3_k_l"):
            return "Q5_K"
        case "mixer.o", "q3_k_m":
            return "Q4_K"
        case ("mixer.o" | "mlp.down", "q2_k"):
            return "Q3_K"
        case _:
            return None
