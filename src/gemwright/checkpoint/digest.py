"""A digest of a model's config and weights, which tells whether two runs had the same model."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from gemwright.checkpoint.open import Checkpoint

SAMPLES, SAMPLE_BYTES = 64, 1 << 14
"""Number and size of the parts of a file of weights that a digest covers."""
_WEIGHTS = (".gguf", ".safetensors", ".npz")


def model_digest(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 of the config and of the sizes and some parts of the files of weights."""
    return weights_digest(checkpoint.path, repr(checkpoint.config))


def weights_digest(path: Path, config: str = "") -> str:
    """Return a SHA-256 of a config and of the sizes and some parts of the files of weights in a path."""
    total = hashlib.sha256(config.encode())
    for file in _weight_files(path):
        size = file.stat().st_size
        total.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for index in range(SAMPLES):
                opened.seek(index * max(SAMPLE_BYTES, size // SAMPLES))
                total.update(opened.read(SAMPLE_BYTES))
    return total.hexdigest()


def _weight_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    yield from [file for file in files if file.suffix in _WEIGHTS] or files
