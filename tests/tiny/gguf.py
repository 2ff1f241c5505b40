"""A tiny Gemma 3 with random weights as a GGUF file."""

from pathlib import Path

import numpy as np

from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.names.gguf import map_gguf
from tests.tiny.config import make_config
from tests.tiny.vocabulary import LETTERS, MERGES, make_vocabulary


def write_tiny_gguf(path: Path, *, max_length: int = 4096, chat_template: str | None = None) -> Path:
    """Write the model of `make_config` to a file.

    Args:
        path: File to write.
        max_length: Maximum number of tokens of a sequence.
        chat_template: Chat template; a model without one counts as pretrained.

    Returns:
        The path. Greedy decoding gives letters and never stops by itself.
    """
    config, vocabulary, random = make_config(max_length), make_vocabulary(), np.random.default_rng(0)
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
