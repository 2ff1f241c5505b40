"""A quantized folder holds weights close to the source's, and gives the outputs of its dequantized weights."""

import json
import struct
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import gemwright
from gemwright import tree
from gemwright.checkpoint import quantize as quantize_module
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.files.safetensors import write_shards
from gemwright.checkpoint.load import load_weights, read_weights
from gemwright.checkpoint.names.mapping import plain_name
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.quantize import BY_BITS, pack, quantize
from gemwright.errors import CheckpointError
from gemwright.kernels import panels
from gemwright.kernels.native import native_enabled
from gemwright.loading.model import forecast
from gemwright.model import vision
from gemwright.model.config import Config
from gemwright.model.params import param_specs
from gemwright.model.transformer import forward, logits
from gemwright.weights import PanelTensor
from tests.helpers import english_text
from tests.tiny.flax import make_big_vision_arrays
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import VISION_KINDS, write_model
from tests.tiny.vocabulary import make_vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")
TEXT_KINDS = ("gemma", "gemma2", "gemma3_text")
KINDS = (*TEXT_KINDS, "recurrent_gemma", *VISION_KINDS)
Bits = Literal[8, 4]


def arrays(checkpoint: Checkpoint) -> dict[str, Any]:
    return dict(read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32))


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source` in bfloat16 and `made` in 8 or 4 bits."""
    place = tmp_path_factory.mktemp("quantized")
    bits: Bits = 4 if KINDS.index(request.param) % 2 else 8
    quantize(write_model(place / "source", request.param, torch.bfloat16), place / "made", bits)
    return place


def test_matrices_are_rounded_and_the_rest_is_unchanged(place: Path) -> None:
    original, made = open_checkpoint(place / "source"), open_checkpoint(place / "made")
    assert made.config == original.config
    values, infos = arrays(original), {plain_name(name): info for name, info in made.file.tensors.items()}
    unchanged: set[str] = set()
    for path, rounded in arrays(made).items():
        info = infos[plain_name(made.mapping[path].name)]
        if not info.panels:
            assert info.encoding == "BF16"
            np.testing.assert_array_equal(rounded, values[path])
            unchanged.add(path)
            continue
        assert info.encoding in BY_BITS.values()
        assert info.shape == made.mapping[path].shape
        assert info.offset % 64 == 0
        plain = np.empty_like(rounded)
        ggml.decode(info.encoding, ggml.encode(info.encoding, values[path]), plain)
        assert np.square(rounded - values[path]).sum() < np.square(plain - values[path]).sum(), path
    # The widths of SigLIP, 48 and 80, are not multiples of a group.
    params = tree.flatten(param_specs(made.config))
    assert unchanged == {path for path, param in params.items() if not param.linear or path.startswith("vision.")}
    assert {path.name for path in place.iterdir()} == {"source", "made"}


def test_the_outputs_are_those_of_the_dequantized_weights(place: Path, tmp_path: Path) -> None:
    """XLA against the same model with the rounded values as float32 arrays."""
    convert(place / "made", tmp_path / "plain", "huggingface", "float32")
    results: list[Any] = []
    for folder in (place / "made", tmp_path / "plain"):
        checkpoint = open_checkpoint(folder)
        params = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
        assert isinstance(params.layers[0].mlp.gate, PanelTensor) == (folder.name == "made")

        def run(params: Any, config: Config = checkpoint.config) -> Any:
            tokens = jnp.arange(12).reshape(1, 12) * 7 % config.vocab
            return logits(config, params, forward(config, params, tokens)[0])

        results.append(np.asarray(jax.jit(run)(params)))
    assert np.abs(results[1]).max() > 1
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-4)


def test_a_vision_tower_of_whole_groups_is_quantized_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 64}
    quantize(write_model(tmp_path / "source", "paligemma", vision_sizes=sizes), tmp_path / "made", 8)
    convert(tmp_path / "made", tmp_path / "plain", "huggingface", "float32")
    rows: list[Any] = []
    for folder in ("made", "plain"):
        checkpoint = open_checkpoint(tmp_path / folder)
        params = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32").vision
        assert params is not None
        assert checkpoint.config.vision is not None
        matrices = [params.layers[0].q, params.layers[1].up, params.layers[1].down, params.project]
        assert all(isinstance(weight, PanelTensor) == (folder == "made") for weight in matrices)
        pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 28, 28, 3)), jnp.float32)
        rows.append(vision.encode(checkpoint.config.vision, params, pixels))
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=1e-4)


def test_panels_are_not_copied_from_the_mapped_file(tmp_path: Path) -> None:
    """The device's buffer is the mapping itself, which the native kernels use directly."""
    quantize(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "made", 4)
    checkpoint = open_checkpoint(tmp_path / "made")
    for dtype in (jnp.float32, None) if native_enabled() else (jnp.float32,):
        weights = tree.flatten(load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, dtype))
        for path, tensor in checkpoint.mapping.items():
            if checkpoint.file.tensors[tensor.name].panels:
                raw = checkpoint.file.raw(tensor.name)
                assert weights[f"{path}.packed"].unsafe_buffer_pointer() == raw.ctypes.data


def test_the_native_kernels_give_the_outputs_of_the_gguf(tmp_path: Path) -> None:
    """Against a GGUF file of the same values, which is repacked when loaded."""
    if not native_enabled():
        pytest.skip("the C++ kernels are not installed")
    convert(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "first.gguf", "gguf", "q8_0")
    quantize(tmp_path / "first.gguf", tmp_path / "made", 8)  # its values are on a grid of 8 bits already
    made, gguf = gemwright.load(tmp_path / "made"), gemwright.load(tmp_path / "first.gguf")
    text = "the and then " * 5
    np.testing.assert_allclose(made.score(text).logprobs, gguf.score(text).logprobs, atol=1e-5)
    options: Any = {"max_tokens": 8, "temperature": 0.0}
    assert made.generate(text, **options).tokens == gguf.generate(text, **options).tokens


def test_a_source_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """big_vision's, with stacked layers and another order of axes."""
    folder = write_model(tmp_path / "folder", "paligemma")
    config, vocabulary = open_checkpoint(folder).config, make_vocabulary("paligemma")
    arrays_ = make_big_vision_arrays(load_file(folder / "model.safetensors"))
    np.savez(tmp_path / "model.npz", **arrays_)
    (tmp_path / "tokenizer.model").write_bytes(vocabulary.sentencepiece_model())
    monkeypatch.setattr("gemwright.checkpoint.open._find_variant", lambda *_, **__: config)
    quantize(tmp_path / "model.npz", tmp_path / "one", 8, "paligemma")
    quantize(folder, tmp_path / "other", 8)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_shards_describe_their_own_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "source")
    quantize(folder, tmp_path / "whole", 4)
    monkeypatch.setattr(
        "gemwright.checkpoint.convert.write_shards",
        lambda folder, tensors: write_shards(folder, tensors, shard_bytes=10_000),
    )
    quantize(folder, tmp_path / "shards", 4)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = arrays(open_checkpoint(tmp_path / "whole")), arrays(open_checkpoint(tmp_path / "shards"))
    for path, values in whole.items():
        np.testing.assert_array_equal(values, shards[path])


def test_rounding_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(70, 96)).astype(np.float32)
    whole = pack("Q4_0", values, "here")
    monkeypatch.setattr(quantize_module, "CACHE_CHUNK", 1)
    np.testing.assert_array_equal(pack("Q4_0", values, "here"), whole)
    assert len(whole) == panels.packed_bytes("Q4_0", 70, 96) + 32  # 5 panels of 3 blocks of 288 bytes, with padding


def test_the_forecast_counts_stored_bytes(tmp_path: Path) -> None:
    quantize(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "made", 4)
    checkpoint = open_checkpoint(tmp_path / "made")
    infos = checkpoint.file.tensors.values()
    quantized, others = (sum(info.nbytes for info in infos if info.panels == kind) for kind in (True, False))
    assert others < quantized < 4 * spec_size(checkpoint) / 6
    assert forecast(checkpoint, "stored").weights == forecast(checkpoint, "float32").weights == quantized + others
    assert forecast(checkpoint, "bfloat16").weights == quantized + others // 2


def spec_size(checkpoint: Checkpoint) -> int:
    return sum(param.size for param in tree.flatten(param_specs(checkpoint.config)).values())


def test_transformers_reads_it_only_once_converted(tmp_path: Path) -> None:
    quantize(write_model(tmp_path / "source"), tmp_path / "made", 8)
    settings = json.loads((tmp_path / "made" / "config.json").read_text())
    assert settings["quantization_config"] == {"quant_method": "gemwright", "bits": 8, "group_size": 32}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    convert(tmp_path / "made", tmp_path / "plain", "huggingface", "bfloat16")
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_values_that_cannot_be_rounded_are_refused(value: float, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "source")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 40] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"made: tensor model\.layers\.1\.mlp\.up_proj\.weight has values that"):
        quantize(folder, tmp_path / "made", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "source")
    with pytest.raises(CheckpointError, match="source exists; choose another name"):
        quantize(folder, folder, 8)
    with pytest.raises(CheckpointError, match=r"made.* cannot be written .*; choose another place"):
        quantize(folder, folder / "config.json" / "made", 8)


DAMAGE = {
    "no description": (None, "has shape"),
    "no words": ("", "is described as ''"),
    "unknown encoding": ("Q5_0 64 96", "is described as"),
    "no whole groups": ("Q8_0 96 63", "is described as"),
    "nothing": ("Q8_0 0 64", "is described as"),
    "more than numbers": ("Q8_0 96 64 ", "is described as"),
    "other size": ("Q8_0 960 64", "does not match its 6528 bytes"),
    "absurd size": ("Q8_0 9999999999 9999999968", "does not match its 6528 bytes"),
    "other shape": ("Q8_0 48 128", r"has shape \[48, 128\] where the model needs \[96, 64\]"),
    "other encoding": ("Q4_0 96 64", "does not match its 6528 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_description_is_one_sentence(damage: str, tmp_path: Path) -> None:
    described, message = DAMAGE[damage]
    quantize(write_model(tmp_path / "source"), tmp_path / "made", 8)
    path, name = tmp_path / "made" / "model.safetensors", "model.layers.0.mlp.gate_proj.weight"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"].pop(name) == "Q8_0 96 64"
    header["__metadata__"] |= {} if described is None else {name: described}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor '?{name}'? .*{message}"):
        arrays(open_checkpoint(tmp_path / "made"))


def test_a_file_rewritten_by_another_program_is_the_same_model(tmp_path: Path) -> None:
    """Other programs keep the descriptions and not the alignment; the panels are then copied."""
    quantize(write_model(tmp_path / "source"), tmp_path / "made", 8)
    path = tmp_path / "made" / "model.safetensors"
    before = arrays(open_checkpoint(tmp_path / "made"))
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata)
    for name, values in arrays(open_checkpoint(tmp_path / "made")).items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.slow
def test_the_demo_in_8_bits_keeps_its_quality(demo_gguf: Path, demo: gemwright.Model, tmp_path: Path) -> None:
    """Weights and activations in 8 bits move the mean log-likelihood of 512 tokens by less than 0.3%."""
    quantize(demo_gguf, tmp_path / "made", 8)
    made = gemwright.load(tmp_path / "made")
    assert 284e6 < (tmp_path / "made" / "model.safetensors").stat().st_size < 286e6  # 8.5 bits of 268,098,176
    ids = made.encode(english_text())[:513]
    ours, theirs = (np.mean(model.engine.score([ids])[0]) for model in (made, demo))
    assert abs(ours / theirs - 1) < 3e-3


assert make_vocabulary().size % 16  # the last panel of a table is not full
