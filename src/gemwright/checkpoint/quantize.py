"""Convert a checkpoint of any format to a folder whose matrices have 8 or 4 bits, in the layout of the kernels.

The folder is a Hugging Face folder except for its quantized tensors, which `checkpoint.files.safetensors` describes.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.configs.huggingface import QUANT_METHOD, to_huggingface
from gemwright.checkpoint.convert import DTYPES, check_new, write_folder
from gemwright.checkpoint.files.ggml import CACHE_CHUNK
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, place_in_shard, stored_bytes
from gemwright.checkpoint.load import Progress, read_weights
from gemwright.checkpoint.mixtures import MIXTURES
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping, plain_name
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.rounding import round_groups
from gemwright.errors import CheckpointError
from gemwright.kernels import panels
from gemwright.model.params import ParamSpec, param_specs

BY_BITS = {8: "Q8_0", 4: "Q4_0"}
"""Encoding of the matrices for each number of bits per weight."""


def quantize(
    source: Path,
    target: Path,
    bits: Literal[8, 4],
    variant: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Checkpoint:
    """Write a checkpoint with its matrices in 8 or 4 bits, and its configuration, tokenizer and generation settings.

    Tensors without rows of whole groups of 32 keep their float dtype: norms, biases, convolutions, gates. Memory holds
    one matrix at a time in float32.

    Args:
        source: A checkpoint in any format.
        target: The folder to make. It must not exist.
        bits: Bits per weight. A group of 32 weights shares a scale of 16 bits.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        progress: Called with the number of bytes read and the total.

    Returns:
        The source.

    Raises:
        CheckpointError: The source cannot be read, or the target cannot be written, in which case nothing is left
            behind.
    """
    checkpoint = open_checkpoint(source, variant)
    check_new(target)
    _write(checkpoint, target, bits, progress)
    return checkpoint


def _write(checkpoint: Checkpoint, folder: Path, bits: int, progress: Progress) -> None:
    params, mapping = tree.flatten(param_specs(checkpoint.config)), map_huggingface(checkpoint.config)
    encodings = {plain_name(name): info.encoding for name, info in checkpoint.file.tensors.items()}

    def read_weight(path: str) -> NDArray[np.float32]:
        read, values = next(weights)
        assert read == path
        return values

    def describe(path: str, tensor: TensorMapping) -> SafetensorsTensor:
        if is_quantized(params[path], tensor):
            encoding, (rows, width), where = BY_BITS[bits], tensor.shape, f"{folder}: tensor {tensor.name}"
            return SafetensorsTensor(
                tensor.name,
                (stored_bytes(encoding, rows, width),),
                np.dtype(np.uint8),
                lambda: pack(encoding, read_weight(path).reshape(rows, width), where),
                described=f"{encoding} {rows} {width}",
            )
        dtype = _FLOAT_DTYPES.get(encodings.get(plain_name(checkpoint.mapping[path].name), ""), np.dtype(np.float32))
        return SafetensorsTensor(
            tensor.name, tensor.shape, dtype, lambda: tensor.as_stored(read_weight(path)).astype(dtype)
        )

    tensors = {path: describe(path, tensor) for path, tensor in mapping.items()}
    order = sorted(tensors, key=lambda path: place_in_shard(tensors[path]))
    weights = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32, progress, order)
    float_dtypes = {tensor.dtype.name for tensor in tensors.values() if tensor.described is None}
    config = to_huggingface(checkpoint.config, float_dtypes.pop() if len(float_dtypes) == 1 else "float32")
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "bits": bits, "group_size": panels.GROUP}
    write_folder(folder, checkpoint, checkpoint.vocabulary(), [tensors[path] for path in order], config)


_FLOAT_DTYPES: dict[str, np.dtype[Any]] = {MIXTURES[name].encoding: dtype for name, dtype in DTYPES.items()}


def is_quantized(param: ParamSpec, tensor: TensorMapping) -> bool:
    """Return whether a weight is a matrix stored as [outputs, inputs] in rows of whole groups."""
    return param.linear and len(tensor.shape) == 2 and tensor.permute is None and tensor.shape[1] % panels.GROUP == 0


def pack(encoding: str, values: NDArray[np.float32], where: str) -> NDArray[np.uint8]:
    """Round a matrix and pack it into panels, with the padding of the file.

    Args:
        encoding: "Q8_0" or "Q4_0".
        values: The matrix, [rows, width].
        where: The tensor, for errors.

    Raises:
        CheckpointError: The matrix has values that are not finite, or too large for a scale.
    """
    rows, width = values.shape
    step = max(1, CACHE_CHUNK // (panels.LANES * width)) * panels.LANES
    packed = np.zeros(stored_bytes(encoding, rows, width), np.uint8)

    def pack_rows(start: int) -> None:
        chunk = values[start : start + step]
        scales, numbers = round_groups(encoding, chunk.reshape(-1, panels.GROUP))
        if not np.isfinite(scales).all():
            raise CheckpointError(f"{where} has values that are not finite, or too large; repair the model.")
        groups = len(chunk), width // panels.GROUP
        chunk_bytes = panels.pack(encoding, scales.reshape(groups), numbers.reshape(*groups, panels.GROUP))
        packed[panels.packed_bytes(encoding, start, width) :][: len(chunk_bytes)] = chunk_bytes

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(pack_rows, range(0, rows, step)))
    return packed
