"""Models from nothing: their weights have the stated distributions, and other programs open them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gemwright
from gemwright import tree
from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.create import create
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.kernels.rg_lru import SHARPNESS
from gemwright.model.params import init
from tests.tiny.config import make_config
from tests.tiny.hf import _make_config
from tests.tiny.recurrent_trio import _GRIFFIN, griffin
from tests.tiny.vocabulary import make_vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")
OTHERS = ("gemma", "gemma2", "vaultgemma", "paligemma", "gemma3", "recurrent_gemma")
CHANCE = 1e-4
"""Least probability of a sample of the stated distribution; the seeds are fixed."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    file.write_bytes(make_vocabulary().sentencepiece_model())
    return file


def write_config(folder: Path, kind: str, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(_make_config(kind, {}).to_json_string(use_diff=False)), **changes}))
    return file


@pytest.mark.parametrize(
    "kind", ["gemma3_text", "paligemma2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
)
def test_the_folder_of_every_family_opens(kind: str, tokenizer: Path, tmp_path: Path):
    config = create(write_config(tmp_path, kind), str(tokenizer), tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.config == config
    assert checkpoint.vocabulary().pieces[:71] == make_vocabulary().pieces[:71]
    written = tree.flatten(load_weights(checkpoint.file, checkpoint.mapping, config, "float32"))
    expected = tree.flatten(init(config, jax.random.key(0)))
    assert written.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(written[path], leaf, err_msg=path)


@pytest.mark.parametrize("kind", ["gemma3_text", "recurrent_gemma"])
def test_transformers_opens_the_folder(kind: str, tokenizer: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    create(write_config(tmp_path, kind), str(tokenizer), tmp_path / "model", seed=3)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    ours = gemwright.load(tmp_path / "model", dtype="float32")
    text = "the thing"  # within the window of a RecurrentGemma, which has one token more in the released code
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")(text)["input_ids"]
    assert ids == [ours.tokenizer.bos_id, *ours.tokenizer.encode(text)]
    with torch.no_grad():
        logits = theirs(torch.tensor([ids]), use_cache=False).logits[0]
    expected = torch.log_softmax(logits.double(), -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(ours.score([ids])[0].logprobs, expected.numpy(), atol=1e-4)


def is_normal(values: Any, variance: float) -> bool:
    """Return whether values are normal with mean 0 and a variance, by the test of Kolmogorov and Smirnov."""
    return scipy.stats.kstest(np.asarray(values).ravel(), "norm", (0, variance**0.5)).pvalue > CHANCE


def test_the_weights_of_a_gemma_have_the_stated_distributions():
    base = make_config()
    config = replace(base, layers=base.layers * 3, width=64)
    weights = init(config, jax.random.key(0))
    branch = 2 / 6
    for layer in weights.layers:
        for leaf, variance in (
            (layer.mixer.q, 1 / 64),
            (layer.mixer.k, 1 / 64),
            (layer.mixer.v, 1 / 64),
            (layer.mixer.o, branch / 32),
            (layer.mlp.gate, 1 / 64),
            (layer.mlp.up, 1 / 64),
            (layer.mlp.down, branch / 64),
        ):
            assert is_normal(leaf, variance)
        assert not np.any(layer.mixer_norm)
        assert not np.any(layer.mixer.q_norm)
    assert is_normal(weights.embed, 1 / 64)
    assert not np.any(weights.final_norm)


def test_the_weights_of_a_recurrentgemma_have_the_stated_distributions(tmp_path: Path, tokenizer: Path):
    changes = {"hidden_size": 128, "lru_width": 512, "num_attention_heads": 4, "head_dim": 32}
    file = write_config(tmp_path, "recurrent_gemma", **changes)
    config = create(file, str(tokenizer), tmp_path / "model")
    mixer: Any = init(config, jax.random.key(0)).layers[0].mixer
    assert is_normal(mixer.x, 1 / 128)
    assert is_normal(mixer.y, 1 / 128)
    assert is_normal(mixer.out, 2 / 5 / 512)
    assert is_normal(mixer.conv, 0.01 / 4)
    assert is_normal(mixer.input_gate, 1 / 128)
    assert is_normal(mixer.decay_gate, 1 / 128)
    for bias in (mixer.x_bias, mixer.y_bias, mixer.conv_bias, mixer.input_gate_bias, mixer.decay_gate_bias):
        assert not np.any(bias)
    kept = np.exp(-SHARPNESS * np.log1p(np.exp(np.asarray(mixer.decay, np.float64))))
    assert scipy.stats.kstest(kept, "uniform", (0.9, 0.099)).pvalue > CHANCE


@pytest.mark.slow
def test_the_weights_are_spread_as_in_the_released_code():
    """The package divides gates and both branches of an MLP by their number, too; all others are equal."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    model = griffin.Griffin(_GRIFFIN, gradient_checkpointing=False)
    theirs: Any = model.init(jax.random.key(0), tokens=tokens, segment_pos=jnp.arange(4)[None])["params"]
    settings = json.loads(_make_config("recurrent_gemma", {}).to_json_string(use_diff=False))
    settings |= {"hidden_size": _GRIFFIN.width, "intermediate_size": 2 * _GRIFFIN.mlp_expanded_width}
    settings |= {"num_hidden_layers": 5, "lru_width": _GRIFFIN.lru_width, "num_attention_heads": _GRIFFIN.num_heads}
    settings |= {"vocab_size": _GRIFFIN.vocab_size, "head_dim": _GRIFFIN.width // _GRIFFIN.num_heads}
    from gemwright.checkpoint.configs.huggingface import from_huggingface

    ours = init(from_huggingface(settings, ""), jax.random.key(1))
    recurrent: Any = ours.layers[0].mixer
    attention: Any = ours.layers[2].mixer
    block, other = theirs["blocks.0"], theirs["blocks.2"]["attention_block"]
    pairs = [
        (recurrent.x, block["recurrent_block"]["linear_x"]["kernel"]),
        (recurrent.y, block["recurrent_block"]["linear_y"]["kernel"]),
        (recurrent.out, block["recurrent_block"]["linear_out"]["kernel"]),
        (recurrent.conv, block["recurrent_block"]["conv_1d"]["w"]),
        (ours.layers[0].mlp.down, block["mlp_block"]["ffw_down"]["kernel"]),
        (attention.q, other["proj_q"]["kernel"]),
        (attention.o, other["proj_final"]["kernel"]),
        (ours.embed, theirs["embedder"]["input_embedding"]),
    ]
    for mine, their in pairs:
        assert scipy.stats.ks_2samp(np.ravel(mine), np.ravel(their)).pvalue > CHANCE


def test_refusals_leave_nothing_behind(tokenizer: Path, tmp_path: Path):
    config = write_config(tmp_path, "gemma")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(to_huggingface(replace(make_config(), vocab=5000, tied=True), "float32")))
    for file, source, message in (
        (other, str(tokenizer), "has 398 tokens and the model has 5000"),
        (config, "gemma-3-270m", "has 262144 tokens and the model has"),
        (config, str(tmp_path / "none.model"), "not a regular file|cannot be read"),
        (config, str(tmp_path), "holds no safetensors"),
        (tmp_path / "none.json", str(tokenizer), "none.json"),
    ):
        with pytest.raises(CheckpointError, match=message):
            create(file, source, tmp_path / "model")
        assert not (tmp_path / "model").exists()
    create(config, str(tokenizer.parent), tmp_path / "model")
    with pytest.raises(CheckpointError, match="exists"):
        create(config, str(tokenizer), tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model", "other.json"]
