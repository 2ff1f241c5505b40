"""Keras presets: logits of `keras-hub`, and files that are damaged or not what they claim."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.model.config import Attention
from gemwright.model.params import ModelWeights
from gemwright.model.transformer import forward, logits
from tests.tiny.vocabulary import make_vocabulary

h5py: Any = pytest.importorskip("h5py")
SIZE = make_vocabulary().size
TINY = {"vocabulary_size": SIZE, "num_query_heads": 4, "hidden_dim": 32, "intermediate_dim": 96, "head_dim": 16}
GEMMA_2 = {
    "num_layers": 3,
    "num_key_value_heads": 2,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "use_sliding_window_attention": True,
    "sliding_window_size": 4,
}
SOFT_CAPS = {"attention_logit_soft_cap": 50.0, "final_logit_soft_cap": 30.0}
PRESETS = {
    "Gemma 1": ("GemmaBackbone", TINY | {"num_layers": 2, "num_key_value_heads": 1}),
    "Gemma 2": ("GemmaBackbone", TINY | GEMMA_2 | SOFT_CAPS),
    "Gemma 3": (
        "Gemma3Backbone",
        TINY | GEMMA_2 | {"num_layers": 7, "image_size": 28, "global_rope_scaling_factor": 8.0, "vision_encoder": None},
    ),
}
SHAPES = {
    "attention/query_dense": ("heads", "width", "head"),
    "attention/key_dense": ("kv", "width", "head"),
    "attention/value_dense": ("kv", "width", "head"),
    "attention/output_dense": ("heads", "head", "width"),
    "pre_attention_norm": ("width",),
    "pre_ffw_norm": ("width",),
    "gating_ffw": ("width", "hidden"),
    "gating_ffw_2": ("width", "hidden"),
    "ffw_linear": ("hidden", "width"),
}


def write_preset(folder: Path, dtype: str = "float32") -> Path:
    """Write a Gemma 1 as keras-hub does, with random weights."""
    name, config = PRESETS["Gemma 1"]
    (folder / "assets" / "tokenizer").mkdir(parents=True)
    (folder / "assets" / "tokenizer" / "vocabulary.spm").write_bytes(make_vocabulary().sentencepiece_model())
    (folder / "config.json").write_text(json.dumps({"class_name": name, "config": config}))
    sizes = {"heads": 4, "kv": 1, "head": 16, "width": 32, "hidden": 48}
    random = np.random.default_rng(0)
    with h5py.File(folder / "model.weights.h5", "w") as file:
        file["layers/reversible_embedding/vars/0"] = random.standard_normal((SIZE, 32)).astype(dtype)
        file["layers/rms_normalization/vars/0"] = random.standard_normal(32).astype(dtype)
        for block in ("gemma_decoder_block", "gemma_decoder_block_1"):
            for part, axes in SHAPES.items():
                values = 0.2 * random.standard_normal([sizes[axis] for axis in axes])
                file[f"layers/{block}/{part}/vars/0"] = values.astype(dtype)
    return folder


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of keras, with numpy 2
@pytest.mark.parametrize("name", PRESETS)
def test_logits_equal_keras_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras: Any = pytest.importorskip("keras")
    models: Any = pytest.importorskip("keras_hub.models")
    kind, config = PRESETS[name]
    backbone, random = getattr(models, kind)(**config), np.random.default_rng(0)
    for weight in backbone.weights:
        weight.assign(weight.numpy() + 0.1 * random.standard_normal(weight.shape))
    backbone.save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "config.json").write_text(json.dumps(keras.saving.serialize_keras_object(backbone)))
    ids = random.integers(4, SIZE, (2, 12)).astype(np.int32)
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    expected = np.asarray(backbone.token_embedding(hidden, reverse=True))
    checkpoint = open_checkpoint(tmp_path)
    weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    found = logits(checkpoint.config, weights, forward(checkpoint.config, weights, jnp.asarray(ids))[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_the_scale_of_queries_is_that_of_the_config(tmp_path: Path) -> None:
    """As in Google's own code for the 27B models; keras-hub 0.32 stores the key and ignores it."""
    folder = write_preset(tmp_path / "preset")
    config = json.loads((folder / "config.json").read_text())
    config["config"]["query_head_dim_normalize"] = False
    (folder / "config.json").write_text(json.dumps(config))
    mixer = open_checkpoint(folder).config.layers[0].mixer
    assert isinstance(mixer, Attention)
    assert mixer.query_scalar == 32 // 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_preset_is_opened_and_converted(dtype: str, tmp_path: Path) -> None:
    folder = write_preset(tmp_path / "preset", dtype)
    for path in (folder, folder / "model.weights.h5", tmp_path):
        checkpoint = open_checkpoint(path)
        assert (checkpoint.format, checkpoint.family.name) == ("keras", "Gemma 1")
        assert checkpoint.vocabulary().pieces == make_vocabulary().pieces
    convert(folder, tmp_path / "model.gguf", "gguf", "float32")
    with h5py.File(folder / "model.weights.h5") as file:
        expected = file["layers/gemma_decoder_block_1/gating_ffw/vars/0"][:].T
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "model.gguf").file.read("blk.1.ffn_gate.weight"), expected)


def load(folder: Path) -> ModelWeights:
    checkpoint = open_checkpoint(folder)
    return load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")


def change(folder: Path, how: str) -> None:
    weights, config = folder / "model.weights.h5", json.loads((folder / "config.json").read_text())
    match how:
        case "a class":
            config["class_name"] = "Gemma4Backbone"
        case "a tower":
            config = {"class_name": "Gemma3Backbone", "config": config["config"] | {"vision_encoder": {}}}
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-5000])
        case "no HDF5":
            weights.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 4)
        case _:
            change_array(weights, how)
    (folder / "config.json").write_text(json.dumps(config))


def change_array(weights: Path, how: str) -> None:
    place = "layers/rms_normalization/vars/0"
    with h5py.File(weights, "r+") as file:
        del file[place]
        match how:
            case "compressed":
                file.create_dataset(place, data=np.ones(32, np.float32), compression="gzip")
            case "integers":
                file[place] = np.ones(32, np.int32)
            case "a link to another file":
                file[place] = h5py.ExternalLink("/etc/passwd", "/")
            case _:
                raw = weights.with_name("raw")
                raw.write_bytes(bytes(128))
                file.create_dataset(place, (32,), "<f4", external=[(str(raw), 0, 128)])


DAMAGE = {
    "a class": "the Keras class 'Gemma4Backbone' is not supported yet",
    "a tower": "a Keras model with a vision encoder is not supported yet",
    "truncated": "damaged",
    "no HDF5": "damaged",
    "compressed": "is not one block of float32",
    "integers": "is not one block of float32",
    "a link to another file": "tensor layers/rms_normalization/vars/0 is missing",
    "an external array": "is not one block of float32",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_one_sentence(how: str, tmp_path: Path) -> None:
    folder = write_preset(tmp_path / "preset")
    change(folder, how)
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    sentence = str(raised.value)
    assert DAMAGE[how] in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_weights_without_their_config_are_named(tmp_path: Path) -> None:
    folder = write_preset(tmp_path / "preset")
    shutil.copy(folder / "model.weights.h5", tmp_path / "alone.h5")
    with pytest.raises(CheckpointError, match=r"is a Keras or HDF5 file.*a Keras preset with its config.json"):
        open_checkpoint(tmp_path / "alone.h5")
