"""Write the vision tower of a Gemma 3 as the GGUF file ("mmproj") that llama.cpp reads beside the model's.

Source: ggml-org/llama.cpp `conversion/gemma.py` (`Gemma3VisionModel`).
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.gguf_vision import to_clip
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.load import read_weights
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint
from gemwright.checkpoint.updates import Updates, merge

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""Value of `general.file_type` for the encoding of the matrices."""
FLOAT32 = ("vision.patch", "vision.positions")
"""Matrices that llama.cpp keeps in float32."""


def tower_path(model: Path) -> Path:
    """Return the path of the tower of a model's file."""
    return model.with_name(f"mmproj-{model.name}")


@contextmanager
def written_tower(checkpoint: Checkpoint, model: Path, dtype: str, updates: Sequence[Updates] = ()) -> Generator[None]:
    """Write the tower of a checkpoint, if it has one, and remove it if the `with` block fails to write the model.

    Args:
        checkpoint: The source.
        model: The file of the model.
        dtype: That of the model. The matrices of the tower are F32, BF16 or else F16.
        updates: Updates of adapters, which are merged.

    Raises:
        CheckpointError: The source cannot be read or the file not be written.
    """
    if checkpoint.config.vision is None:
        yield
        return
    encoding = {"float32": "F32", "bfloat16": "BF16"}.get(dtype, "F16")
    path = tower_path(model)
    metadata = to_clip(checkpoint.config) | {"general.name": model.stem, "general.file_type": FILE_TYPES[encoding]}
    write_gguf(path, metadata, _tensors(checkpoint, encoding, updates))
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _tensors(checkpoint: Checkpoint, encoding: str, updates: Sequence[Updates]) -> list[GgufTensor]:
    mapping = {path: tensor for path, tensor in map_gguf(checkpoint.config).items() if path.startswith("vision.")}
    weights = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32, order=mapping)

    def chunks(path: str, tensor: TensorMapping) -> Iterator[NDArray[Any]]:
        read, values = next(weights)
        assert read == path
        yield tensor.as_stored(merge(path, values, updates)) + np.float32(tensor.offset)

    def choose(path: str, tensor: TensorMapping) -> str:
        return "F32" if len(tensor.shape) == 1 or path in FLOAT32 else encoding

    return [
        GgufTensor(tensor.name, tensor.shape, choose(path, tensor), chunks(path, tensor))
        for path, tensor in mapping.items()
    ]
