"""Folders for MLX: Hugging Face folders whose matrices are packed integers with a scale and a bias for each group.

Source: ml-explore/mlx `mlx.core.quantize` (affine); ml-explore/mlx-lm `utils.py` (the keys of `quantization`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.convert import DTYPES, check_new, write_folder
from gemwright.checkpoint.files.safetensors import SafetensorsTensor
from gemwright.checkpoint.load import read_weights
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.errors import CheckpointError, GemwrightError
from gemwright.families import VAULTGEMMA, Family
from gemwright.model.params import ParamSpec, param_specs
from gemwright.release.targets import ExportOptions, Progress
from gemwright.release.verify.runtime import refused_if_failed
from gemwright.release.verify.source import verify_against

GROUP = 64
"""Number of values of a row that share a scale and a bias."""
BITS = {"int4": 4, "int8": 8}
FLOATS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
SMALLEST_SCALE = np.float32(1e-7)


def export_mlx(source: Path, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write a checkpoint as a folder that mlx-lm loads.

    Args:
        source: A checkpoint in any format.
        target: The folder to make.
        options: `weights` is int4 (the default), int8, bf16, f16 or f32.
        progress: Called with a line about each stage.

    Raises:
        GemwrightError: The checkpoint cannot be read, mlx-lm has no such model, or the folder differs from the source.
    """
    checkpoint, weights = open_checkpoint(source), options.weights or "int4"
    if weights not in BITS and weights not in FLOATS:
        known = ", ".join((*BITS, *FLOATS))
        raise GemwrightError(f"An MLX folder has no weights {weights!r:.40}; choose one of {known}.")
    _require_supported(checkpoint.family)
    check_new(target)
    verify = (lambda: iter(verify_against(target, source, status=progress).checks)) if options.verify else None
    with refused_if_failed(target, verify):
        progress("Writing the weights ...")
        _write(checkpoint, target, BITS.get(weights), FLOATS.get(weights, "bfloat16"))


def _require_supported(family: Family) -> None:
    if family is VAULTGEMMA or family.image_prompt == "prefix":
        raise GemwrightError(f"mlx-lm has no {family.name}; export it to another target, or convert it to huggingface.")


def _write(checkpoint: Checkpoint, target: Path, bits: int | None, dtype: str) -> None:
    params, mapping = tree.flatten(param_specs(checkpoint.config)), map_huggingface(checkpoint.config)
    config = to_huggingface(checkpoint.config, dtype)
    if bits is not None:
        quantization = {"group_size": GROUP, "bits": bits, "mode": "affine"}
        config |= {"quantization": quantization, "quantization_config": quantization}
    tensors: list[SafetensorsTensor] = []
    for path, tensor in mapping.items():
        packed = bits is not None and is_packed(path, params[path], tensor)
        tensors += _pack(checkpoint, path, tensor, bits or 0) if packed else [_plain(checkpoint, path, tensor, dtype)]
    write_folder(target, checkpoint, checkpoint.vocabulary(), tensors, config)


def is_packed(path: str, param: ParamSpec, tensor: TensorMapping) -> bool:
    """Return whether mlx-lm quantizes a weight: a matrix of the decoder whose rows are whole groups."""
    plain = param.linear and len(tensor.shape) == 2 and tensor.permute is None and not path.startswith("vision.")
    return plain and tensor.shape[1] % GROUP == 0


def _read(checkpoint: Checkpoint, path: str) -> NDArray[np.float32]:
    """Read one weight: those of a shard are written in the order of their dtypes."""
    return next(read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32, order=[path]))[1]


def _plain(checkpoint: Checkpoint, path: str, tensor: TensorMapping, dtype: str) -> SafetensorsTensor:
    stored = DTYPES[dtype]

    def produce() -> NDArray[Any]:
        with np.errstate(over="ignore"):
            values = tensor.as_stored(_read(checkpoint, path)).astype(stored)
        if not np.isfinite(values).all():
            raise CheckpointError(f"tensor {tensor.name} has values that are not finite in {dtype}; repair the model.")
        return values

    return SafetensorsTensor(tensor.name, tensor.shape, stored, produce)


def _pack(checkpoint: Checkpoint, path: str, tensor: TensorMapping, bits: int) -> Iterator[SafetensorsTensor]:
    (rows, width), stored = tensor.shape, DTYPES["bfloat16"]
    held: dict[str, NDArray[Any]] = {}

    def produce() -> NDArray[np.uint32]:
        numbers, held["scales"], held["biases"] = quantize(_read(checkpoint, path).reshape(rows, width), bits)
        if not np.isfinite(held["scales"].astype(np.float32)).all():
            raise CheckpointError(f"tensor {tensor.name} has values that are not finite; repair the model.")
        return numbers

    yield SafetensorsTensor(tensor.name, (rows, width * bits // 32), np.dtype(np.uint32), produce)
    for part in ("scales", "biases"):
        name = f"{tensor.name.removesuffix('.weight')}.{part}"
        yield SafetensorsTensor(name, (rows, width // GROUP), stored, lambda part=part: held.pop(part))


def quantize(values: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[Any]]:
    """Round a matrix [rows, width] to integers with a scale and a bias for each group: q * scale + bias.

    The end of a group's range that is farther from zero is exact, and so is zero if the range includes it.

    Returns:
        The integers, packed along the row from the lowest bits, [rows, width * bits / 32]; the scales and the biases,
        [rows, width / 64] bfloat16.
    """
    rows = len(values)
    groups = values.astype(ml_dtypes.bfloat16).astype(np.float32).reshape(rows, -1, GROUP)
    low, high = groups.min(axis=2), groups.max(axis=2)
    most = np.float32(2**bits - 1)
    negative = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / most, SMALLEST_SCALE)
    scale = np.where(negative, scale, -scale)
    edge = np.where(negative, low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps == 0, scale, edge / np.where(steps == 0, 1, steps))
    bias = np.where(steps == 0, 0, edge)
    scales, biases = scale.astype(ml_dtypes.bfloat16), bias.astype(ml_dtypes.bfloat16)
    exact = scales.astype(np.float32)[:, :, None], biases.astype(np.float32)[:, :, None]
    numbers = np.clip(np.rint((groups - exact[1]) / exact[0]), 0, most).astype(np.uint32)
    per_word = 32 // bits
    words = numbers.reshape(rows, -1, per_word) << (np.arange(per_word, dtype=np.uint32) * np.uint32(bits))
    return np.bitwise_or.reduce(words, axis=2), scales, biases
