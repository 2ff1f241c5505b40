"""Quantized matrices of other programs, packed bit by bit from the description of each format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tests.tiny.hf import make_model
from tests.tiny.vocabulary import make_vocabulary

Leaves = dict[str, np.ndarray]
BF16, F8, E8M0 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


class Scheme(NamedTuple):
    """A format: its keys in `config.json`, and a function that makes the tensors of a random matrix and its values."""

    config: dict[str, Any]
    make: Callable[[np.random.Generator, int, int], tuple[Leaves, np.ndarray]]
    embedding: bool = False


def bit_stream(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return rows of numbers as bytes: bit i of number n is bit `n * bits + i` of the row."""
    every = (numbers[..., None].astype(np.int64) >> np.arange(bits) & 1).astype(np.uint8)
    return np.packbits(every.reshape(len(numbers), -1), axis=1, bitorder="little")


def words(numbers: np.ndarray, bits: int, dtype: Any = np.int32) -> np.ndarray:
    """Return rows of numbers as words of 32 bits, padded with zeros."""
    missing = -numbers.shape[1] % (32 // bits if 32 % bits == 0 else 32)
    return bit_stream(np.pad(numbers, ((0, 0), (0, missing))), bits).view(dtype)


def by_column(scales: np.ndarray, group: int, width: int) -> np.ndarray:
    """Return the scale of each column in float32."""
    return np.stack([scales[:, column // group] for column in range(width)], axis=1).astype(np.float32)


def scales_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = BF16) -> np.ndarray:
    """Return positive scales for 4-bit numbers that give weights below one."""
    return rng.uniform(0.01, 0.05, shape).astype(dtype)


def mlx(bits: int, group: int, dtype: Any = BF16) -> Scheme:
    """MLX's affine mode."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        numbers = rng.integers(0, 1 << bits, (rows, width))
        scales = (scales_of(rng, (rows, width // group), np.float32) * 2.0 ** (4 - bits)).astype(dtype)
        biases = (-(2.0 ** (bits - 1)) * scales_of(rng, scales.shape, np.float32) * 2.0 ** (4 - bits)).astype(dtype)
        values = numbers.astype(np.float32) * by_column(scales, group, width) + by_column(biases, group, width)
        return {"weight": words(numbers, bits, np.uint32), "scales": scales, "biases": biases}, values

    return Scheme({"quantization": {"group_size": group, "bits": bits}}, make, embedding=True)


def mlx_floats(mode: str) -> Scheme:
    """MLX's modes with floats."""
    bits, group = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}[mode]

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        numbers = rng.integers(0, 16, (rows, width)) if bits == 4 else rng.integers(0, 0x50, (rows, width))
        values = FP4[numbers] if bits == 4 else numbers.astype(np.uint8).view(F8).astype(np.float32)
        if mode == "nvfp4":
            scales = rng.uniform(0.01, 0.1, (rows, width // group)).astype(F8)
        else:
            scales = np.exp2(rng.integers(-7, -3, (rows, width // group)).astype(np.float32)).astype(E8M0)
        leaves = {"weight": words(numbers, bits, np.uint32), "scales": scales.view(np.uint8)}
        return leaves, values * by_column(scales, group, width)

    return Scheme({"quantization": {"group_size": group, "bits": bits, "mode": mode}}, make)


def compressed(name: str, **weights: Any) -> dict[str, Any]:
    """Return the keys of a folder of compressed-tensors."""
    group = {"targets": ["Linear"], "input_activations": None, "weights": weights}
    keys = {"quant_method": "compressed-tensors", "format": name, "ignore": ["lm_head"]}
    return {"quantization_config": keys | {"config_groups": {"group_0": group}}}


def packed(bits: int, group: int | None, *, symmetric: bool = True, ordered: bool = True) -> Scheme:
    """Integers of compressed-tensors in words; a group of None is a whole row."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        size, half = group or width, 1 << bits - 1
        numbers, groups = rng.integers(0, 2 * half, (rows, width)), -(-width // size)
        scales = (scales_of(rng, (rows, groups), np.float32) * 2.0 ** (4 - bits)).astype(BF16)
        zeros = np.full((rows, groups), half) if symmetric else rng.integers(0, 2 * half, (rows, groups))
        index = np.arange(width) // size if ordered else rng.permutation(np.arange(width) // size)
        leaves = {
            "weight_packed": words(numbers, bits),
            "weight_scale": scales,
            "weight_shape": np.array([rows, width]),
        }
        leaves |= {} if symmetric else {"weight_zero_point": np.ascontiguousarray(words(zeros.T, bits).T)}
        leaves |= {} if ordered else {"weight_g_idx": index.astype(np.int32)}
        return leaves, (numbers - zeros[:, index]).astype(np.float32) * scales.astype(np.float32)[:, index]

    keys = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group or -1}
    strategy = "group" if group else "channel"
    return Scheme(compressed("pack-quantized", **keys, strategy=strategy), make)


def blocks(strategy: str, *, floats: bool = True, symmetric: bool = True) -> Scheme:
    """Bytes of compressed-tensors: floats (F8_E4M3) or integers, with scales per tensor, row or block of 32 x 32."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        height, group = {"tensor": (rows, width), "channel": (1, width), "block": (32, 32)}[strategy]
        shape = -(-rows // height), -(-width // group)
        numbers = rng.normal(0, 30, (rows, width)).astype(F8 if floats else np.int8)
        scales = rng.uniform(0.001, 0.01, shape).astype(BF16)
        zeros = np.zeros(shape, np.int8) if symmetric else rng.integers(-9, 9, shape).astype(np.int8)
        row, column = np.arange(rows)[:, None] // height, np.arange(width) // group
        values = (numbers.astype(np.float32) - zeros[row, column]) * scales.astype(np.float32)[row, column]
        leaves = {"weight": numbers, "weight_scale": scales.reshape(1) if strategy == "tensor" else scales}
        return leaves | ({} if symmetric else {"weight_zero_point": zeros}), values

    keys: dict[str, Any] = {"num_bits": 8, "type": "float" if floats else "int", "symmetric": symmetric}
    keys |= {"strategy": strategy} | ({"block_structure": [32, 32]} if strategy == "block" else {})
    return Scheme(compressed("float-quantized" if floats else "int-quantized", **keys), make)


def compressed_fp4(group: int) -> Scheme:
    """NVFP4 (groups of 16) or MXFP4 (32) of compressed-tensors."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        numbers, shape = rng.integers(0, 16, (rows, width)), (rows, width // group)
        leaves = {"weight_packed": bit_stream(numbers, 4)}
        if group == 32:
            scales = np.exp2(rng.integers(-7, -3, shape).astype(np.float32))
            return leaves | {"weight_scale": scales.astype(E8M0).view(np.uint8)}, FP4[numbers] * by_column(
                scales, group, width
            )
        scales, divisor = rng.uniform(10, 400, shape).astype(F8), np.array([9000], np.float32)
        leaves |= {"weight_scale": scales, "weight_global_scale": divisor, "input_global_scale": 2 * divisor}
        return leaves, FP4[numbers] * by_column(scales.astype(np.float32) / divisor, group, width)

    keys = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": group}
    name = "nvfp4" if group == 16 else "mxfp4"
    strategy = "tensor_group" if group == 16 else "group"
    return Scheme(compressed(f"{name}-pack-quantized", **keys, strategy=strategy), make)


def gptq(bits: int, group: int, *, version: int = 1, ordered: bool = True) -> Scheme:
    """GPTQ: [inputs, outputs] in words along the inputs; the first version stores zero points minus one."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        size = width if group == -1 else group
        numbers, groups = rng.integers(0, 1 << bits, (rows, width)), -(-width // size)
        zeros = rng.integers(1, 1 << bits, (rows, groups))
        scales = (scales_of(rng, (rows, groups), np.float32) * 2.0 ** (4 - bits)).astype(np.float16)
        index = np.arange(width) // size if ordered else rng.permutation(np.arange(width) // size)
        leaves = {
            "qweight": words(numbers, bits).T,
            "qzeros": words(zeros.T - (version == 1), bits),
            "scales": scales.T,
            "g_idx": index.astype(np.int32),
        }
        return leaves, (numbers - zeros[:, index]).astype(np.float32) * scales.astype(np.float32)[:, index]

    keys = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": not ordered, "sym": False}
    return Scheme({"quantization_config": keys | ({"checkpoint_format": "gptq_v2"} if version == 2 else {})}, make)


def awq(group: int) -> Scheme:
    """AWQ for its matrix kernel: words along the outputs, with the even columns of eight before the odd ones."""

    def in_words(numbers: np.ndarray) -> np.ndarray:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return words(numbers.reshape(len(numbers), -1, 8)[..., order].reshape(numbers.shape), 4)

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        groups = width // group
        numbers, zeros = rng.integers(0, 16, (width, rows)), rng.integers(0, 16, (groups, rows))
        scales, index = scales_of(rng, (groups, rows), np.float16), np.arange(width) // group
        leaves = {"qweight": in_words(numbers), "qzeros": in_words(zeros), "scales": scales}
        return leaves, ((numbers - zeros[index]).astype(np.float32) * scales.astype(np.float32)[index]).T

    keys = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Scheme({"quantization_config": keys}, make)


def bitsandbytes(kind: str, block: int, *, nested: bool = False) -> Scheme:
    """bitsandbytes in 4 bits: indices of a table, the first in the high bits, with a scale per block of the matrix."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        count, table = rows * width, np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
        indices, blocks = rng.integers(0, 16, count), -(-count // block)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [rows, width]}
        if nested:
            numbers, codes = rng.integers(0, 256, blocks), np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            maxima = rng.uniform(0.1, 0.2, -(-blocks // 256)).astype(np.float32)
            scales = codes[numbers] * maxima[np.arange(blocks) // 256] + np.float32(0.3)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.3}
            leaves = {"weight.absmax": numbers.astype(np.uint8), "weight.nested_absmax": maxima}
            leaves |= {"weight.nested_quant_map": codes}
        else:
            scales = rng.uniform(0.1, 0.5, blocks).astype(np.float32)
            leaves = {"weight.absmax": scales}
        leaves |= {"weight": (indices[::2] << 4 | indices[1::2]).astype(np.uint8)[:, None], "weight.quant_map": table}
        leaves[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        return leaves, (table[indices] * scales[np.arange(count) // block]).reshape(rows, width)

    return Scheme({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, make)


def bitsandbytes_int8() -> Scheme:
    """bitsandbytes in 8 bits: each row has its largest absolute value."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        numbers, maxima = rng.integers(-127, 128, (rows, width)), rng.uniform(0.2, 0.6, rows).astype(np.float32)
        leaves = {"weight": numbers.astype(np.int8), "SCB": maxima, "weight_format": np.array(0, np.uint8)}
        return leaves, numbers.astype(np.float32) * maxima[:, None] * np.float32(1 / 127)

    return Scheme({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, make)


def fp8(shape: str, method: str = "fp8", leaf: str = "weight_scale_inv", **keys: Any) -> Scheme:
    """Floats of 8 bits with scales per block, row or tensor."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        height, group = {"block": (128, 128), "row": (1, width), "tensor": (rows, width)}[shape]
        grid = -(-rows // height), -(-width // group)
        numbers, scales = rng.normal(0, 30, (rows, width)).astype(F8), rng.uniform(0.001, 0.01, grid)
        scales = scales.astype(np.float32)
        values = numbers.astype(np.float32) * scales[np.arange(rows)[:, None] // height, np.arange(width) // group]
        stored = scales.reshape(()) if shape == "tensor" else scales
        return {"weight": numbers, leaf: stored, "input_scale": np.float32(1).reshape(1)}, values

    size = {"weight_block_size": [128, 128]} if shape == "block" else {}
    return Scheme({"quantization_config": {"quant_method": method} | size | keys}, make)


def modelopt_fp4() -> Scheme:
    """NVFP4 of Model Optimizer: a scale per 16 values, and one for all."""

    def make(rng: np.random.Generator, rows: int, width: int) -> tuple[Leaves, np.ndarray]:
        numbers, common = rng.integers(0, 16, (rows, width)), np.float32(1 / 9000)
        scales = rng.uniform(10, 400, (rows, width // 16)).astype(F8)
        leaves = {"weight": bit_stream(numbers, 4), "weight_scale": scales, "weight_scale_2": common.reshape(())}
        return leaves, FP4[numbers] * by_column(scales.astype(np.float32) * common, 16, width)

    return Scheme({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, make)


SCHEMES = {
    **{f"mlx, {bits} bits, groups of 32": mlx(bits, 32) for bits in (2, 3, 4, 5, 6, 8)},
    "mlx, float16": mlx(4, 32, np.float16),
    "mlx, float32": mlx(4, 32, np.float32),
    **{f"mlx, {mode}": mlx_floats(mode) for mode in ("mxfp4", "mxfp8", "nvfp4")},
    "compressed-tensors, w4a16": packed(4, 32),
    "compressed-tensors, w8a16": packed(8, 32),
    "compressed-tensors, 2 bits": packed(2, 32),
    "compressed-tensors, w4a16 channel": packed(4, None),
    "compressed-tensors, w4a16 asymmetric": packed(4, 32, symmetric=False),
    "compressed-tensors, w8a16 asymmetric": packed(8, None, symmetric=False),
    "compressed-tensors, w4a16 reordered": packed(4, 32, symmetric=False, ordered=False),
    **{f"compressed-tensors, float8 per {kind}": blocks(kind) for kind in ("tensor", "channel", "block")},
    "compressed-tensors, int8": blocks("channel", floats=False),
    "compressed-tensors, int8 asymmetric": blocks("channel", floats=False, symmetric=False),
    "compressed-tensors, nvfp4": compressed_fp4(16),
    "compressed-tensors, mxfp4": compressed_fp4(32),
    **{f"gptq, {bits} bits": gptq(bits, 32) for bits in (2, 3, 4, 8)},
    "gptq, version 2": gptq(4, 32, version=2),
    "gptq, whole rows": gptq(4, -1),
    "gptq, reordered": gptq(4, 32, ordered=False),
    "awq": awq(32),
    "bitsandbytes, nf4": bitsandbytes("nf4", 64),
    "bitsandbytes, fp4": bitsandbytes("fp4", 128),
    "bitsandbytes, nf4 nested": bitsandbytes("nf4", 64, nested=True),
    "bitsandbytes, int8": bitsandbytes_int8(),
    **{f"fp8 per {shape}": fp8(shape) for shape in ("block", "tensor")},
    "fbgemm_fp8": fp8("row", "fbgemm_fp8", "weight_scale"),
    "modelopt, fp8": fp8("tensor", "modelopt", "weight_scale", quant_algo="FP8"),
    "modelopt, nvfp4": modelopt_fp4(),
}


def as_torch(array: np.ndarray) -> torch.Tensor:
    """Return a tensor with the bytes and the dtype of an array; torch has no float8 and bfloat16 from numpy."""
    array = np.array(array, order="C")
    views = {BF16: (np.int16, torch.bfloat16), F8: (np.uint8, torch.float8_e4m3fn)}
    if array.dtype not in views:
        return torch.from_numpy(array)
    stored, dtype = views[array.dtype]
    return torch.from_numpy(array.view(stored)).view(dtype)


def write_matrix(folder: Path, leaves: Leaves, config: dict[str, Any], module: str = "m") -> Path:
    """Write the tensors of one module, and the config."""
    folder.mkdir(exist_ok=True)
    save_file(
        {f"{module}.{leaf}": as_torch(array) for leaf, array in leaves.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_quantized(folder: Path, scheme: Scheme) -> PreTrainedModel:
    """Write a tiny Gemma 3 whose matrices are quantized, and return transformers' model with the same values."""
    model, rng = make_model("gemma3_text"), np.random.default_rng(1)
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module = name.removesuffix(".weight")
            if not (name.endswith("_proj.weight") or (scheme.embedding and "embed" in name)):
                tensors[name] = parameter.detach().clone()
                continue
            leaves, values = scheme.make(rng, *parameter.shape)
            tensors |= {f"{module}.{leaf}": as_torch(array) for leaf, array in leaves.items()}
            parameter.copy_(torch.from_numpy(values))
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | scheme.config))
    (folder / "tokenizer.model").write_bytes(make_vocabulary("gemma3_text").sentencepiece_model())
    return model
