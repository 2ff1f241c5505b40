"""Quantized folders that cannot be decoded are refused before any weight is read, whatever is wrong in them."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.dequantize.file import METHODS, dequantize
from gemwright.checkpoint.files.safetensors import open_safetensors
from gemwright.errors import CheckpointError
from tests.checkpoint.quantized_folders import SCHEMES, write_matrix


def refusal(folder: Path, leaves: dict[str, np.ndarray], config: dict[str, Any]) -> str:
    write_matrix(folder, leaves, config)
    with pytest.raises(CheckpointError) as raised:
        dequantize(open_safetensors(folder), config, str(folder / "config.json"))
    return str(raised.value)


def made(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    leaves, _ = SCHEMES[name].make(np.random.default_rng(0), 32, 96)
    return leaves, json.loads(json.dumps(SCHEMES[name].config))


@pytest.mark.parametrize(
    "name", ["aqlm", "bitnet", "eetq", "higgs", "hqq", "quanto", "quark", "spqr", "torchao", "vptq"]
)
def test_an_unknown_method_is_named(name: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, {"weight": np.zeros((4, 4), np.uint8)}, {"quantization_config": {"quant_method": name}})
    assert f"'{name}' is not supported" in message
    assert all(method in message for method in ("GGUF", *METHODS))


def test_a_config_without_its_method(tmp_path: Path) -> None:
    leaves, _ = made("awq")
    assert "'quantization_config'" in refusal(tmp_path, leaves, {})
    for wrong in ("gemwright", {"quant_method": ["gemwright"]}):
        assert "config.json" in refusal(tmp_path, leaves, {"quantization_config": wrong})
    assert "unknown" in refusal(tmp_path, leaves, {"quantization_config": {"load_in_4bit": True}})


@pytest.mark.parametrize("name", SCHEMES)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    leaves, config = made(name)
    optional = {"input_scale", "input_global_scale", "weight_format", "g_idx", "weight_g_idx"}
    if name == "compressed-tensors, int8 asymmetric":
        optional.add("weight_zero_point")
    for leaf in leaves.keys() - optional:
        assert "m" in refusal(tmp_path, {key: value for key, value in leaves.items() if key != leaf}, config)


@pytest.mark.parametrize("key", ["bits", "group_size"])
def test_numbers_that_do_not_fit_the_tensors(key: str, tmp_path: Path) -> None:
    for name in ("mlx, 4 bits, groups of 32", "gptq, 4 bits"):
        leaves, config = made(name)
        (keys,) = config.values()
        for wrong in (0, -3, 7, 8, 1 << 40, 0.5, True, None, "4", [4]):
            keys[key] = wrong
            assert str(tmp_path) in refusal(tmp_path, leaves, config)


def test_a_group_index_outside_the_groups(tmp_path: Path) -> None:
    for name, leaf in (("gptq, reordered", "g_idx"), ("compressed-tensors, w4a16 reordered", "weight_g_idx")):
        leaves, config = made(name)
        leaves[leaf] = leaves[leaf] + 1
        assert f"'{leaf}' that names a group outside 0 to 2" in refusal(tmp_path, leaves, config)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("compressed-tensors, w4a16", "format", "marlin-24"),
        ("compressed-tensors, w4a16", "sparsity_config", {"format": "sparse-24-bitmask"}),
        ("compressed-tensors, w4a16", "transform_config", {"config_groups": {"u": {"type": "hadamard"}}}),
        ("gptq, 4 bits", "checkpoint_format", "marlin"),
        ("awq", "version", "gemv"),
        ("modelopt, nvfp4", "quant_algo", "W4A8_AWQ"),
    ],
)
def test_another_layout_is_refused(name: str, key: str, value: Any, tmp_path: Path) -> None:
    leaves, config = made(name)
    config["quantization_config"][key] = value
    assert key in refusal(tmp_path, leaves, config)


JUNK = st.none() | st.booleans() | st.integers(-2, 300) | st.just(1 << 70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(JUNK, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def _mutate(draw: Any, value: Any) -> Any:
    """Return a JSON value with one value inside it replaced, removed or kept."""
    if not isinstance(value, dict) or not value or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 5)) == 0:
        return {other: kept for other, kept in value.items() if other != key}
    return value | {key: _mutate(draw, value[key])}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draw a folder with a damaged config, or with tensors that are missing, renamed, cut or cast."""
    leaves, config = made(draw(st.sampled_from(sorted(SCHEMES))))
    if draw(st.booleans()):
        config = config | {key: _mutate(draw, value) for key, value in config.items()}
    for _ in range(draw(st.integers(0, 2))):
        leaf = draw(st.sampled_from(sorted(leaves)))
        array = leaves.pop(leaf)
        match draw(st.integers(0, 4)):
            case 0:
                pass
            case 1:
                leaves[draw(st.sampled_from([*sorted(made("awq")[0]), "weight", "weight_scale", "SCB"]))] = array
            case 2:
                leaves[leaf] = array[: draw(st.integers(0, 3))] if array.ndim else array
            case 3:
                leaves[leaf] = np.resize(
                    np.ascontiguousarray(array).reshape(-1).view(np.uint8), draw(st.integers(0, 99))
                ).view(np.int8)
            case _:
                leaves[leaf] = array.reshape(-1)[::-1].reshape(array.shape)
        if not leaves:
            leaves = {leaf: array}
    return leaves, config


@settings(
    max_examples=int(os.environ.get("FUZZ", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(folder=damaged())
def test_damage_raises_or_decodes(folder: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path) -> None:
    leaves, config = folder
    write_matrix(tmp_path, leaves, config)
    tracemalloc.start()
    try:
        file = dequantize(open_safetensors(tmp_path), config, str(tmp_path / "config.json"))
        for name, info in file.tensors.items():
            if info.encoding in ("F32", "F16", "BF16"):
                assert file.read(name).shape == info.shape
                assert file.raw(name).nbytes == info.nbytes
    except CheckpointError as error:
        assert str(error).startswith(str(tmp_path))  # noqa: PT017
        assert len(str(error)) < len(str(tmp_path)) + 600  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3_000_000
