"""A cache of the tokenizers of GGUF files on the disk."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.checkpoint.files.lazy_strings import LazyStrings
from gemwright.errors import CheckpointError
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary

CACHE_VERSION = b"2"
"""Version of the cached models. Increase it when `Vocabulary` or `sentencepiece_model` give another result."""


def load_cached_tokenizer(metadata: Mapping[str, Any], folder: Path | None) -> Tokenizer:
    """Load the tokenizer of a GGUF file from the cache, or make it and add it to the cache.

    Reading a cached model is several times as fast as checking and converting a quarter of a million pieces. Its key is
    a hash of everything it is made from.

    Args:
        metadata: Metadata of the file.
        folder: Folder of the cache; None makes the tokenizer without it.

    Raises:
        CheckpointError: The vocabulary is missing or damaged.
    """
    stored = [_stored(metadata.get(f"tokenizer.ggml.{key}")) for key in ("tokens", "scores", "token_type", "merges")]
    arrays = [np.zeros(0) if array is None else array for array in stored]
    if folder is None or stored[0] is None or stored[2] is None or (stored[1] is None and stored[3] is None):
        return Tokenizer(Vocabulary.from_gguf(metadata))
    digest = hashlib.blake2b(CACHE_VERSION, digest_size=20)
    for array in arrays:
        digest.update(f"{array.dtype} {array.size}".encode())
        digest.update(np.ascontiguousarray(array).data)
    file = folder / f"{digest.hexdigest()}.model"
    try:
        return Tokenizer(file.read_bytes())
    except (OSError, CheckpointError):
        tokenizer = Tokenizer(Vocabulary.from_gguf(metadata))
    _store(tokenizer, file)
    return tokenizer


def _stored(value: Any) -> NDArray[Any] | None:
    """Return the bytes or numbers of an array as in the file; None if there is none, or it is of another kind."""
    if isinstance(value, LazyStrings):
        return value.stored
    return value if isinstance(value, np.ndarray) else None


def _store(tokenizer: Tokenizer, file: Path) -> None:
    with suppress(OSError, CheckpointError):  # without it the next start makes the tokenizer again
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replace_file(file, len(tokenizer.model)) as opened:
            opened.write(tokenizer.model)
