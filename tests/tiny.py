"""A tiny model with random weights as a GGUF file, for tests that need a whole model and not a good one."""

from pathlib import Path

import numpy as np

from gemwright.checkpoint.names.mapping import mapping
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope
from gemwright.text.vocabulary import Vocabulary

MARKERS = {67: "<|fim_prefix|>", 68: "<|fim_middle|>", 69: "<|fim_suffix|>", 70: "<|file_separator|>"}
LETTERS = [*"\u2581abcdefghijklmnopqrstuvwxyz.,!?ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
MERGES = ["th", "he", "the", "\u2581the", "an", "and", "\u2581and", "in", "ing", "er", "on", "re"]


def tiny_config(context: int = 4096) -> Config:
    """Two layers of Gemma 3, one local and one global."""
    everything = Attention(heads=2, kv_heads=1, head_dim=16, query_scalar=16, rope=Rope(1e6), qk_norm=True)
    local = Attention(heads=2, kv_heads=1, head_dim=16, query_scalar=16, window=16, qk_norm=True)
    layers = tuple(Layer(mixer, Mlp(64), post_norms=True) for mixer in (local, everything))
    return Config(width=32, vocab=tiny_vocabulary().size, layers=layers, max_length=context, tied=False)


def tiny_vocabulary() -> Vocabulary:
    """Gemma's special pieces, markers and bytes, the alphabet and a few merges."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(MARKERS.get(n, f"<unused{n}>") for n in range(4, 71))]
    control = [*special, "<start_of_turn>", "<end_of_turn>"]
    byte = [f"<0x{value:02X}>" for value in range(256)]
    learned = [*LETTERS, *MERGES]
    kinds = [3] * len(control) + [6] * 256 + [1] * len(learned)
    kinds[3] = 2
    scores = [0.0] * (len(control) + 256) + [-float(rank) for rank in range(len(learned))]
    values = {"tokens": [*control, *byte, *learned], "scores": scores, "token_type": kinds}
    return Vocabulary.from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()})


def tiny_gguf(path: Path, *, context: int = 4096, chat_template: str | None = None) -> Path:
    """Write the model to a file.

    Args:
        path: Where to.
        context: Tokens that it can take.
        chat_template: What it says of conversations; without one it counts as pretrained.

    Returns:
        The path. Decoded greedily, the model writes letters and never ends by itself.
    """
    config, vocabulary, random = tiny_config(context), tiny_vocabulary(), np.random.default_rng(0)
    tensors: list[GgufTensor] = []
    for ours, stored in map_gguf(config).items():
        values = np.full(stored.shape, stored.offset, np.float32)
        if len(stored.shape) > 1:
            values = random.normal(size=stored.shape, scale=stored.shape[-1] ** -0.5).astype(np.float32)
        if ours == "head":
            values[: vocabulary.size - len(LETTERS) - len(MERGES)] = 0.0
        tensors.append(GgufTensor(stored.name, stored.shape, "F32", [values]))
    template = {} if chat_template is None else {"tokenizer.chat_template": chat_template}
    write_gguf(path, to_gguf(config) | vocabulary.gguf_metadata() | template, tensors)
    return path
