"""A GGUF file's metadata: read as llama.cpp reads it, and the same again after writing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from gemwright.checkpoint.configs.gguf import from_gguf, to_gguf
from gemwright.checkpoint.files.gguf import open_gguf, write_gguf
from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import CheckpointError
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope, pattern
from gemwright.variants import GEMMA_3_4B, GEMMA_3_270M
from tests.checkpoint.configurations import CONFIGS, UNWRITABLE, tensors_of, with_mixers
from tests.tiny.config import CONFIG_NUMBERS, make_drawn_config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_round_trips_through_gguf(name: str, tmp_path: Any) -> None:
    config = CONFIGS[name]
    metadata = to_gguf(config)
    assert from_gguf(metadata, tensors_of(config), "m.gguf") == config
    write_gguf(tmp_path / "m.gguf", metadata, [])
    assert from_gguf(open_gguf(tmp_path / "m.gguf").metadata, tensors_of(config), "m.gguf") == config


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
@given(draw=CONFIG_NUMBERS)
@settings(max_examples=100, deadline=None)
def test_tiny_configs_round_trip_through_gguf_or_are_refused(kind: str, draw: dict[str, Any]) -> None:
    config = make_drawn_config(kind, draw)
    mixers = [layer.mixer for layer in config.layers]
    inexpressible = (
        any(m.query_scalar != m.head_dim for m in mixers)
        or (kind != "gemma3" and not config.tied)
        or (kind == "gemma2" and (mixers[0].soft_cap is None or config.final_soft_cap is None))
        or (kind == "gemma2" and all(m.window is None for m in mixers))  # llama.cpp aborts on such a file
        or (kind == "gemma3" and any(m.window is not None and m.rope.scale != 1.0 for m in mixers))
    )
    if inexpressible:
        with pytest.raises(CheckpointError, match="cannot be written"):
            to_gguf(config)
    else:
        assert from_gguf(to_gguf(config), tensors_of(config), "m.gguf") == config


@pytest.mark.parametrize("name", UNWRITABLE)
def test_models_of_no_architecture_are_not_written(name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        to_gguf(UNWRITABLE[name])


def test_the_demo_file_is_the_published_270m(demo_gguf: Any, tmp_path: Any) -> None:
    file = open_gguf(demo_gguf)
    assert from_gguf(file.metadata, file.tensors, str(demo_gguf)) == GEMMA_3_270M
    write_gguf(tmp_path / "m.gguf", to_gguf(GEMMA_3_270M), [])
    assert open_gguf(tmp_path / "m.gguf").metadata.items() <= file.metadata.items()


def test_the_query_scale_of_the_27b_models_is_known_by_depth() -> None:
    for name, scalar in (("gemma-2-27b", 144), ("gemma-3-27b", 168)):
        config = CONFIGS[name]
        assert from_gguf(to_gguf(config), tensors_of(config), "m.gguf").layers[0].mixer.query_scalar == scalar
        with pytest.raises(CheckpointError, match="no key for the query scale"):
            to_gguf(with_mixers(config, query_scalar=128))


@pytest.mark.parametrize("name", ["gemma-3-270m", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b", "gemma-3-27b"])
def test_older_gemma3_files_leave_the_rope_out(name: str) -> None:
    metadata = {key: value for key, value in to_gguf(CONFIGS[name]).items() if ".rope." not in key}
    del metadata["gemma3.attention.layer_norm_rms_epsilon"]
    old_keys = {"gemma3.rope.global.freq_base": 1e6, "gemma3.rope.local.freq_base": 1e4}
    for extra in ({}, old_keys):
        assert from_gguf(metadata | extra, tensors_of(CONFIGS[name]), "m.gguf") == CONFIGS[name]


def test_an_unscaled_gemma3_of_a_scaled_depth_says_so() -> None:
    config = with_mixers(GEMMA_3_4B, rope=Rope(1e6), window=None)
    metadata = to_gguf(config)
    assert metadata["gemma3.rope.scaling.factor"] == 1.0
    assert from_gguf(metadata, tensors_of(config), "m.gguf") == config


def test_gguf_defaults_are_those_of_llama_cpp() -> None:
    metadata = {
        f"gemma2.{key}": value
        for key, value in {
            "block_count": 4,
            "embedding_length": 64,
            "context_length": 128,
            "feed_forward_length": 96,
            "attention.head_count": 4,
        }.items()
    }
    metadata["general.architecture"] = "gemma2"
    everywhere = Attention(4, 4, 16, 16, soft_cap=50.0)
    kinds = [Layer(m, Mlp(96), post_norms=True) for m in (replace(everywhere, window=4096), everywhere)]
    expected = Config(64, 300, pattern(4, *kinds), 128, final_soft_cap=30.0)
    assert from_gguf(metadata, tensors_of(expected), "m.gguf") == expected


GGUF = to_gguf(GEMMA_3_270M)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 10**9),
        ("block_count", 0),
        ("embedding_length", np.array([640])),
        ("attention.head_count", 641),
        ("attention.head_count", True),
        ("attention.value_length", 128),
        ("attention.causal", False),
        ("rope.dimension_count", 128),
        ("rope.freq_base", float("nan")),
        ("rope.scaling.factor", 0.0),
        ("attention.sliding_window", -1),
        ("attention.sliding_window_pattern", np.ones(17, bool)),
        ("attention.layer_norm_rms_epsilon", "1e-6"),
        ("final_logit_softcapping", -30.0),
    ],
)
def test_a_bad_gguf_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"m.gguf: key 'gemma3.{key}' is "):
        from_gguf(GGUF | {f"gemma3.{key}": value}, tensors_of(GEMMA_3_270M), "m.gguf")


def test_missing_and_unknown_keys_of_a_gguf_are_errors() -> None:
    tensors = tensors_of(GEMMA_3_270M)
    for keys, message in (
        ({"general.architecture": "llama"}, "the architecture 'llama' is not supported yet; supported are gemma, "),
        ({"general.architecture": "gemma3n"}, "the architecture 'gemma3n' is not supported yet; supported are gemma, "),
        ({"gemma3.rope.scaling.type": "yarn"}, "YaRN is not supported yet; supported are linear RoPE scaling, none."),
        ({"gemma3.rope.scaling.type": 7}, "RoPE scaling of type 7 is not supported yet"),
        ({"general.architecture": "clip"}, "is a vision tower"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_gguf(GGUF | keys, tensors, "m.gguf")
    with pytest.raises(CheckpointError, match=r"'gemma3.context_length' is missing"):
        from_gguf({k: v for k, v in GGUF.items() if k != "gemma3.context_length"}, tensors, "m.gguf")
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is missing"):
        from_gguf(GGUF, {}, "m.gguf")
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is of shape \(640, 640, 1\)"):
        from_gguf(GGUF, {"token_embd.weight": TensorInfo((640, 640, 1), "F32", 0, 0)}, "m.gguf")
    with pytest.raises(CheckpointError, match=r"300 tokens .* only 299 rows"):
        from_gguf(GGUF | {"tokenizer.ggml.tokens": ["a"] * 300}, tensors_of(GEMMA_3_270M, rows=299), "m.gguf")
