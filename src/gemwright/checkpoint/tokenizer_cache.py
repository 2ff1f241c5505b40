"""Tokenizers of GGUF files, kept from one start of the program to the next."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gemwright.checkpoint.files.lazy_strings import LazyStrings
from gemwright.errors import CheckpointError
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary

FORM = b"1"
"""To be changed with what `Vocabulary` and `sentencepiece_model` make of the same file."""


def load_cached_tokenizer(metadata: Mapping[str, Any], folder: Path | None) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe, from a folder if it was made before.

    To check a quarter of a million pieces and bring them to our form takes several times as long as to read the result.
    It is found by a hash of all that it is made from.

    Args:
        metadata: Of the file.
        folder: Where models of tokenizers are kept; None makes it anew.

    Raises:
        CheckpointError: The vocabulary is missing or damaged.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    numbers = [metadata.get(f"tokenizer.ggml.{key}") for key in ("scores", "token_type")]
    if (
        folder is None
        or not isinstance(tokens, LazyStrings)
        or not all(isinstance(array, np.ndarray) for array in numbers)
    ):
        return Tokenizer(Vocabulary.from_gguf(metadata))
    digest = hashlib.blake2b(FORM, digest_size=20)
    for array in map(np.asarray, (tokens.stored, *numbers)):
        digest.update(f"{array.dtype} {array.size}".encode())
        digest.update(np.ascontiguousarray(array).data)
    file = folder / f"{digest.hexdigest()}.model"
    try:
        return Tokenizer(file.read_bytes())
    except (OSError, CheckpointError):
        tokenizer = Tokenizer(Vocabulary.from_gguf(metadata))
    _keep(tokenizer, file)
    return tokenizer


def _keep(tokenizer: Tokenizer, file: Path) -> None:
    partial = file.with_name(file.name + ".partial")
    with suppress(OSError):  # it is made anew next time
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            partial.write_bytes(tokenizer.model)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
