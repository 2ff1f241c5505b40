"""Small random models for the exports, whose rows are whole groups of every encoding."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope
from tests.tiny.vocabulary import make_vocabulary


def make_config(family: str = "gemma3") -> Config:
    """Return two layers of Gemma 1, 2 or 3, of Gemma 2 and 3 one local and one global, of width 64."""
    full = Attention(heads=2, kv_heads=1, head_dim=64, query_scalar=64, rope=Rope(1e6 if family == "gemma3" else 1e4))
    full = replace(full, qk_norm=family == "gemma3", soft_cap=50.0 if family == "gemma2" else None)
    local = full if family == "gemma" else replace(full, window=16, rope=Rope())
    layers = tuple(Layer(mixer, Mlp(128), post_norms=family != "gemma") for mixer in (local, full))
    cap = 30.0 if family == "gemma2" else None
    return Config(width=64, vocab=make_vocabulary().size, layers=layers, max_length=1024, final_soft_cap=cap)


def write_small_gguf(path: Path, family: str = "gemma3", *, chat_template: str | None = None, seed: int = 0) -> Path:
    """Write a small random model as a GGUF file in float32, and return its path."""
    config, vocabulary, random = make_config(family), make_vocabulary(), np.random.default_rng(seed)
    tensors: list[GgufTensor] = []
    for stored in map_gguf(config).values():
        values = stored.offset + 0.3 * random.standard_normal(stored.shape)
        if len(stored.shape) > 1:
            values = random.normal(size=stored.shape, scale=stored.shape[-1] ** -0.5)
        tensors.append(GgufTensor(stored.name, stored.shape, "F32", [values.astype(np.float32)]))
    template = {} if chat_template is None else {"tokenizer.chat_template": chat_template}
    write_gguf(path, to_gguf(config) | vocabulary.gguf_metadata() | template, tensors)
    return path
