"""From any format to a folder of ours whose matrices have 8 or 4 bits, packed for the kernels that multiply by them.

Such a folder is one of Hugging Face but for its quantised tensors, which `checkpoint.safetensors` describes.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.configs.huggingface import QUANT_METHOD, to_huggingface
from gemwright.checkpoint.convert import DTYPES, ENCODINGS, new, write_folder
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, place_in_shard, stored_bytes
from gemwright.checkpoint.load import Progress, read_weights
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping, plain_name
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.rounding import round_groups
from gemwright.errors import CheckpointError
from gemwright.kernels import panels
from gemwright.model.params import ParamSpec, param_specs

BY_BITS = {8: "Q8_0", 4: "Q4_0"}
CHUNK = 1 << 16
"""Values that a core rounds at a time: they stay in its cache."""


def quantize(
    source: Path,
    target: Path,
    bits: Literal[8, 4],
    variant: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Checkpoint:
    """Write a checkpoint with its matrices in 8 or 4 bits, and its configuration, tokenizer and generation settings.

    What has no rows of whole groups of 32 stays in the float type that it has: norms, biases, convolutions, gates.
    The largest matrix stands in memory in float32 while it is rounded.

    Args:
        source: A checkpoint in any format.
        target: The folder to make. It must not exist.
        bits: Of a weight; 32 of them share a scale of 16 bits.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        progress: Called with the bytes read so far and the bytes in all.

    Returns:
        The source.

    Raises:
        CheckpointError: the source cannot be read, or the target cannot be written.
    """
    checkpoint = open_checkpoint(source, variant)
    with new(target):
        _write(checkpoint, target, bits, progress)
    return checkpoint


def _write(checkpoint: Checkpoint, folder: Path, bits: int, progress: Progress) -> None:
    params, mapping = tree.flatten(param_specs(checkpoint.config)), map_huggingface(checkpoint.config)
    encodings = {plain_name(name): info.encoding for name, info in checkpoint.file.tensors.items()}

    def weight(path: str) -> NDArray[np.float32]:
        read, values = next(weights)
        assert read == path
        return values

    def describe(path: str, stored: TensorMapping) -> SafetensorsTensor:
        if is_quantized(params[path], stored):
            encoding, (rows, width), where = BY_BITS[bits], stored.shape, f"{folder}: tensor {stored.name}"
            return SafetensorsTensor(
                stored.name,
                (stored_bytes(encoding, rows, width),),
                np.dtype(np.uint8),
                lambda: pack(encoding, weight(path).reshape(rows, width), where),
                described=f"{encoding} {rows} {width}",
            )
        dtype = _PLAIN.get(encodings.get(plain_name(checkpoint.mapping[path].name), ""), np.dtype(np.float32))
        return SafetensorsTensor(stored.name, stored.shape, dtype, lambda: stored.as_stored(weight(path)).astype(dtype))

    tensors = {path: describe(path, stored) for path, stored in mapping.items()}
    order = sorted(tensors, key=lambda path: place_in_shard(tensors[path]))
    weights = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32, progress, order)
    plain = {tensor.dtype.name for tensor in tensors.values() if tensor.described is None}
    config = to_huggingface(checkpoint.config, plain.pop() if len(plain) == 1 else "float32")
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "bits": bits, "group_size": panels.GROUP}
    write_folder(folder, checkpoint, checkpoint.vocabulary(), [tensors[path] for path in order], config)


_PLAIN: dict[str, np.dtype[Any]] = {ENCODINGS[name]: dtype for name, dtype in DTYPES.items()}


def is_quantized(param: ParamSpec, stored: TensorMapping) -> bool:
    """Whether a weight is a matrix that the file holds as [outputs, inputs], in rows of whole groups."""
    return param.linear and len(stored.shape) == 2 and stored.permute is None and stored.shape[1] % panels.GROUP == 0


def pack(encoding: str, values: NDArray[np.float32], where: str) -> NDArray[np.uint8]:
    """Round a matrix and arrange it in panels, filled up as it is stored.

    Args:
        encoding: "Q8_0" or "Q4_0".
        values: [rows, width].
        where: The tensor, for messages.

    Raises:
        CheckpointError: it has values that are not finite, or too large for a scale.
    """
    rows, width = values.shape
    step = max(1, CHUNK // (panels.LANES * width)) * panels.LANES
    packed = np.zeros(stored_bytes(encoding, rows, width), np.uint8)

    def part(start: int) -> None:
        chunk = values[start : start + step]
        scales, numbers = round_groups(encoding, chunk.reshape(-1, panels.GROUP))
        if not np.isfinite(scales).all():
            raise CheckpointError(f"{where} has values that are not finite, or too large; repair the model.")
        groups = len(chunk), width // panels.GROUP
        made = panels.pack(encoding, scales.reshape(groups), numbers.reshape(*groups, panels.GROUP))
        packed[panels.packed_bytes(encoding, start, width) :][: len(made)] = made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(part, range(0, rows, step)))
    return packed
