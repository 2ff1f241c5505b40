"""Quantized matrices written by the libraries that own the formats, against their own dequantization."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gemwright.checkpoint.dequantize.file import dequantize
from gemwright.checkpoint.files.safetensors import open_safetensors
from tests.checkpoint.quantized_folders import compressed, write_matrix

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
ROWS, WIDTH = 64, 256
WEIGHT = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.1


def opened(folder: Path, leaves: dict[str, torch.Tensor], config: dict[str, Any]) -> np.ndarray:
    """Return our values of tensors that a library made."""
    save_file({f"m.{leaf}": t.contiguous() for leaf, t in leaves.items()}, folder / "model.safetensors")
    return dequantize(open_safetensors(folder), config, str(folder / "config.json")).read("m.weight")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_mlx(bits: int, group: int, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    packed, scales, biases = mx.quantize(mx.array(WEIGHT.numpy()), group, bits)
    expected = np.array(mx.dequantize(packed, scales, biases, group, bits))
    leaves = {"weight": packed, "scales": scales, "biases": biases}
    config = {"quantization": {"group_size": group, "bits": bits}}
    folder = write_matrix(tmp_path, {leaf: np.array(value) for leaf, value in leaves.items()}, config)
    values = dequantize(open_safetensors(folder), config, "config.json").read("m.weight")
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-7 * np.abs(expected).max())  # they may fuse s * q + b


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_mlx_floats(mode: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    packed, scales = mx.quantize(mx.array(WEIGHT.numpy()), mode=mode)
    expected = np.array(mx.dequantize(packed, scales, mode=mode, dtype=mx.float32))
    config = {"quantization": {"mode": mode}}
    folder = write_matrix(tmp_path, {"weight": np.array(packed), "scales": np.array(scales)}, config)
    values = dequantize(open_safetensors(folder), config, "config.json").read("m.weight")
    np.testing.assert_array_equal(values, expected)


COMPRESSED = {
    "w4a16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 128}),
    "w8a16": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}),
    "channel": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}),
    "asymmetric": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False}),
    "int8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "float8 tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "float8 channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "float8 block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]},
    ),
}


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("ordered", [True, False])
def test_compressed_tensors(name: str, ordered: bool, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    kind, keys = COMPRESSED[name]
    keys = {"type": "int", "symmetric": True} | keys
    args, size = QuantizationArgs(**keys), keys.get("group_size", WIDTH)
    index = torch.arange(WIDTH, dtype=torch.int32) // size
    if not ordered:
        if keys["strategy"] != "group" or size > 64:
            pytest.skip("only groups have an order")
        index = index[torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))]
    match keys["strategy"]:
        case "tensor":
            parts = WEIGHT.reshape(1, -1)
        case "block":
            parts = WEIGHT.reshape(ROWS // 32, 32, WIDTH // 32, 32).transpose(1, 2).reshape(ROWS // 32, WIDTH // 32, -1)
        case _:
            parts = WEIGHT[:, torch.argsort(index, stable=True)].reshape(ROWS, -1, size)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    state = {"weight": WEIGHT, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    state |= {} if ordered else {"weight_g_idx": index}
    compressor = BaseCompressor.load_from_registry(kind)
    names = {"weight": WEIGHT, "scale": scale, "zero_point": state["weight_zero_point"], "quantization_args": args}
    leaves = compressor.compress_weight(**names, g_idx=state.get("weight_g_idx"))
    leaves = {"weight_scale": scale} | ({} if ordered else {"weight_g_idx": index}) | leaves
    expected = compressor.decompress_weight(dict(leaves), args).float().numpy()
    values = opened(tmp_path, leaves, compressed(kind, **keys))
    np.testing.assert_array_equal(values, expected)


def test_compressed_tensors_nvfp4(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.quantized_compressors import fp4_quantized
    from compressed_tensors.quantization import QuantizationArgs

    keys = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    common = (448 * 6 / WEIGHT.abs().max()).reshape(1)
    scale = (common * WEIGHT.reshape(ROWS, -1, 16).abs().amax(-1) / 6).to(torch.float8_e4m3fn)
    compressor = fp4_quantized.NVFP4PackedCompressor()
    args = QuantizationArgs(**keys, scale_dtype=torch.float8_e4m3fn)
    torch.compiler.set_stance("force_eager")
    leaves = compressor.compress_weight(WEIGHT, scale.float(), common, args) | {"weight_global_scale": common}
    unpacked = fp4_quantized.unpack_fp4_from_uint8(leaves["weight_packed"], ROWS, WIDTH, torch.float32)
    expected = unpacked * (scale.float() / common).repeat_interleave(16, 1)
    values = opened(tmp_path, leaves, compressed("nvfp4-pack-quantized", **keys))
    np.testing.assert_array_equal(values, expected.numpy())
    np.testing.assert_allclose(values, WEIGHT.numpy(), rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes(kind: str, nested: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(WEIGHT, quant_type=kind, blocksize=64, compress_statistics=nested)
    expected = functional.dequantize_4bit(packed, state).float().numpy()
    leaves = {"weight": packed} | {f"weight.{leaf}": value for leaf, value in state.as_dict(packed=True).items()}
    values = opened(tmp_path, leaves, {"quantization_config": {"quant_method": "bitsandbytes"}})
    np.testing.assert_allclose(values, expected, rtol=2e-7, atol=0)


def test_bitsandbytes_int8(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    numbers, maxima, _ = functional.int8_vectorwise_quant(WEIGHT.half())
    expected = functional.int8_vectorwise_dequant(numbers, maxima).numpy()
    leaves = {"weight": numbers, "SCB": maxima}
    values = opened(tmp_path, leaves, {"quantization_config": {"quant_method": "bitsandbytes"}})
    np.testing.assert_allclose(values, expected, rtol=2e-7, atol=0)


def module_of(package: str, path: str) -> Any:
    """Import one file of a package without the rest of it, which needs a GPU or older releases of others."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed")
    file = importlib.util.spec_from_file_location(Path(path).stem, Path(spec.submodule_search_locations[0]) / path)
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module


def test_awq(tmp_path: Path) -> None:
    packing = module_of("awq", "utils/packing_utils.py")
    generator = torch.Generator().manual_seed(0)
    packed, zeros = (
        torch.randint(-(2**31), 2**31, (count, ROWS // 8), generator=generator).int() for count in (WIDTH, WIDTH // 32)
    )
    scales = (torch.rand(WIDTH // 32, ROWS, generator=generator) * 0.01 + 0.001).half()
    expected = packing.dequantize_gemm(packed, zeros, scales, 4, 32).T
    leaves = {"qweight": packed, "qzeros": zeros, "scales": scales}
    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}}
    values = opened(tmp_path, leaves, config)
    np.testing.assert_array_equal(values.astype(np.float16), expected.numpy())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ordered", [True, False])
def test_gptq(bits: int, ordered: bool, tmp_path: Path) -> None:
    """The library's packing; its kernels need a GPU."""
    linears = module_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py")
    generator = torch.Generator().manual_seed(0)
    scales = (torch.rand(ROWS, WIDTH // 32, generator=generator) * 0.01 + 0.001).half()
    zeros = torch.randint(1, 1 << bits, (ROWS, WIDTH // 32), generator=generator)
    index = torch.arange(WIDTH) // 32
    index = index if ordered else index[torch.randperm(WIDTH, generator=generator)]
    numbers = torch.randint(0, 1 << bits, (ROWS, WIDTH), generator=generator)
    linear = torch.nn.Linear(WIDTH, ROWS, bias=False)
    linear.weight.data = weight = (numbers - zeros[:, index]) * scales.float()[:, index]
    made = linears.QuantLinear(bits, 32, WIDTH, ROWS, bias=False)
    made.pack(linear, scales.float(), zeros.float(), index.int())
    leaves = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales, "g_idx": made.g_idx}
    keys = {"quant_method": "gptq", "bits": bits, "group_size": 32}
    np.testing.assert_array_equal(opened(tmp_path, leaves, {"quantization_config": keys}), weight.numpy())


def test_transformers_fp8(tmp_path: Path) -> None:
    from transformers.integrations import finegrained_fp8

    numbers = (WEIGHT * 1000).clamp(-448, 448).to(torch.float8_e4m3fn)
    scales = torch.rand(1, 2)
    expected = finegrained_fp8._dequantize_fp8_weight(numbers, scales, [128, 128], torch.float32)
    keys = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    values = opened(tmp_path, {"weight": numbers, "weight_scale_inv": scales}, {"quantization_config": keys})
    np.testing.assert_array_equal(values, expected.numpy())


def test_modelopt_nvfp4(tmp_path: Path) -> None:
    pytest.importorskip("modelopt")
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    quantized, scale, common = NVFP4QTensor.quantize(WEIGHT, 16)
    expected = quantized.dequantize(torch.float32, scale=scale, double_scale=common, block_sizes={-1: 16})
    leaves = {"weight": quantized._quantized_data, "weight_scale": scale, "weight_scale_2": common}
    keys = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    np.testing.assert_array_equal(opened(tmp_path, leaves, {"quantization_config": keys}), expected.numpy())
