"""Quantized Hugging Face folders: values bit for bit, and a whole model against transformers."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from gemwright.checkpoint.dequantize.file import dequantize
from gemwright.checkpoint.dequantize.numbers import DTYPES
from gemwright.checkpoint.files.safetensors import open_safetensors
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.transformer import forward, logits
from tests.checkpoint.quantized_folders import SCHEMES, write_matrix, write_quantized
from tests.helpers import assert_close, random_ids
from tests.tiny.vocabulary import embedding_size

ROWS, WIDTH = 64, 192


def open_folder(folder: Path) -> TensorFile:
    config = json.loads((folder / "config.json").read_text())
    return dequantize(open_safetensors(folder), config, str(folder / "config.json"))


@partial(jax.jit, static_argnums=0)  # compiled once for all formats
def _logits(config: Config, weights: ModelWeights, tokens: np.ndarray) -> jax.Array:
    hidden, _ = forward(config, weights, tokens)
    return logits(config, weights, hidden)


@pytest.mark.parametrize("name", SCHEMES)
def test_values_are_exact(name: str, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    leaves, expected = scheme.make(np.random.default_rng(0), ROWS, WIDTH)
    file = open_folder(write_matrix(tmp_path, leaves, scheme.config))
    assert list(file.tensors) == ["m.weight"]
    info = file.tensors["m.weight"]
    values = file.read("m.weight")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    for start, stop in ((0, 1), (3, 17), (5, 6), (ROWS - 9, ROWS)):
        np.testing.assert_array_equal(file.read_rows("m.weight", start, stop), expected[start:stop])
    stored = file.raw("m.weight")
    assert stored.nbytes == info.nbytes == 2 * ROWS * WIDTH
    np.testing.assert_array_equal(
        stored.view(DTYPES[info.encoding]), expected.reshape(-1).astype(DTYPES[info.encoding])
    )
    file.release("m.weight")


OLDER = {
    "gptq, 4 bits": ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": False}),
    "gptq, version 2": ("quantize_config.json", {"bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}),
    "awq": ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True}),
    "modelopt, fp8": ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}),
    "modelopt, nvfp4": ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}),
}
"""Files that describe the quantization instead of `config.json`."""


@pytest.mark.parametrize("name", OLDER)
def test_settings_in_a_file_of_their_own_are_read(name: str, tmp_path: Path) -> None:
    leaves, expected = SCHEMES[name].make(np.random.default_rng(0), ROWS, WIDTH)
    write_matrix(tmp_path, leaves, {})
    file, document = OLDER[name]
    (tmp_path / file).write_text(json.dumps(document))
    np.testing.assert_array_equal(open_folder(tmp_path).read("m.weight"), expected)


def test_settings_of_another_algorithm_are_refused(tmp_path: Path) -> None:
    leaves, _ = SCHEMES["modelopt, fp8"].make(np.random.default_rng(0), ROWS, WIDTH)
    write_matrix(tmp_path, leaves, {})
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A8_AWQ"}}))
    with pytest.raises(
        CheckpointError, match=r"hf_quant_config\.json.*quant_algo' is 'W4A8_AWQ', and it must be FP8 or NVFP4"
    ):
        open_folder(tmp_path)


WHOLE = (
    "mlx, 4 bits, groups of 32",
    "compressed-tensors, w4a16",
    "compressed-tensors, nvfp4",
    "gptq, 4 bits",
    "awq",
    "bitsandbytes, nf4 nested",
    "fp8 per block",
    "modelopt, nvfp4",
)


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_has_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = write_quantized(tmp_path / "model", SCHEMES[name])
    checkpoint = open_checkpoint(tmp_path / "model")
    weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    tokens = random_ids(embedding_size("gemma3_text"), (2, 12))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert_close(_logits(checkpoint.config, weights, tokens), expected, 1e-5)
