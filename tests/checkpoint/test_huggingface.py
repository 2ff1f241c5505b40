"""config.json: read as transformers reads it, and the same again after writing."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.configs.huggingface import from_huggingface, to_huggingface
from gemwright.errors import CheckpointError
from gemwright.model.config import Config, Rope
from gemwright.variants import GEMMA_2_2B, GEMMA_3_4B, GEMMA_3_270M
from tests.checkpoint.configurations import (
    CONFIGS,
    GLOBAL,
    LOCAL,
    UNWRITABLE,
    as_transformers_reads,
    transformers_config,
    with_mixers,
)
from tests.tiny.config import CONFIG_NUMBERS, make_drawn_config

SIZES = {
    "hidden_size": st.sampled_from([64, 128, 2304]),
    "intermediate_size": st.sampled_from([96, 512]),
    "num_hidden_layers": st.integers(1, 9),
}
COMMON = {
    "head_dim": st.sampled_from([16, 128, 256]),
    "vocab_size": st.sampled_from([300, 256_000]),
    "max_position_embeddings": st.sampled_from([512, 163_840]),
    "rms_norm_eps": st.sampled_from([1e-6, 1e-5]),
    "tie_word_embeddings": st.booleans(),
    "attention_bias": st.just(False),
    "cache_implementation": st.just("hybrid"),
    "rope_theta": st.sampled_from([10_000, 10_000.0, 500_000.0]),
}
LATER = {
    "query_pre_attn_scalar": st.sampled_from([144, 256]),
    "sliding_window": st.sampled_from([7, 512]),
    "final_logit_softcapping": st.sampled_from([None, 30.0, 20.0]),
    "hidden_activation": st.just("gelu_pytorch_tanh"),
    "use_bidirectional_attention": st.sampled_from([False, None]),
}
HEADS = st.sampled_from(
    [{}, {"num_attention_heads": 4, "num_key_value_heads": 2}, {"num_key_value_heads": 1}, {"num_attention_heads": 16}]
)
LINEAR = {"rope_type": "linear", "factor": 8.0}
FLAT_ROPES = st.sampled_from(
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": LINEAR},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}},
        {"rope_parameters": {"rope_theta": 20_000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 20_000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": None},
    ]
)
LAYERED_ROPES = st.sampled_from(
    [
        {},
        {"rope_scaling": None, "rope_local_base_freq": 9_000.0},
        {"rope_scaling": LINEAR},
        {"rope_scaling": {"rope_type": "linear", "factor": 2, "rope_theta": 77.0}, "rope_local_base_freq": 9_000.0},
        {"rope_parameters": {GLOBAL: {"rope_type": "default", "rope_theta": 5e5}}},
        {"rope_parameters": {GLOBAL: LINEAR, LOCAL: {"rope_type": "default"}}, "rope_local_base_freq": 9_000.0},
        {"rope_parameters": {GLOBAL: LINEAR | {"rope_theta": 3e6}, LOCAL: LINEAR | {"rope_theta": 2e4}}},
        {"rope_parameters": {LOCAL: {"rope_theta": 2e4}, GLOBAL: {"rope_type": "default"}}, "rope_scaling": LINEAR},
        {"rope_parameters": {LOCAL: {"rope_theta": 2e4}}},
        {"rope_parameters": {GLOBAL: None, LOCAL: None}},
        {"rope_parameters": None},
    ]
)


@st.composite
def sparse_configs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    optional = COMMON if kind == "gemma" else COMMON | LATER
    if kind == "gemma":
        optional = optional | {"hidden_act": st.sampled_from(["gelu", "gelu_pytorch_tanh"])}
    if kind == "gemma2":
        optional = optional | {"attn_logit_softcapping": st.sampled_from([None, 50.0, 40.0])}
    if kind == "gemma3_text":
        optional = optional | {
            "attn_logit_softcapping": st.none(),
            "rope_local_base_freq": st.just(10_000),
            "sliding_window_pattern": st.sampled_from([1, 2, 6]),
        }
    data = draw(st.fixed_dictionaries(SIZES, optional=optional)) | {"model_type": kind}
    data |= draw(HEADS) | draw(LAYERED_ROPES if kind == "gemma3_text" else FLAT_ROPES)
    if kind != "gemma" and draw(st.booleans()):
        depth = data["num_hidden_layers"]
        data["layer_types"] = draw(st.lists(st.sampled_from([LOCAL, GLOBAL]), min_size=depth, max_size=depth))
    return data


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_sparse_files_are_read_as_in_transformers(kind: str, data: st.DataObject) -> None:
    sparse = data.draw(sparse_configs(kind))
    assert from_huggingface(sparse, "config.json") == as_transformers_reads(sparse)


@given(sparse=sparse_configs("gemma3_text"), tied=st.sampled_from([{}, {"tie_word_embeddings": False}]))
@settings(max_examples=50, deadline=None)
def test_text_tower_of_a_multimodal_file(sparse: dict[str, Any], tied: dict[str, bool]) -> None:
    sparse.pop("tie_word_embeddings", None)
    data = {"model_type": "gemma3", "text_config": sparse, "vision_config": {"image_size": 256}, **tied}
    data["mm_tokens_per_image"] = 1  # an image must fit a window of any drawn size
    data["architectures"] = ["Gemma3ForConditionalGeneration"]
    assert replace(from_huggingface(data, "config.json"), vision=None) == as_transformers_reads(data)


def test_the_published_4b_file_is_sparse() -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = from_huggingface({"model_type": "gemma3", "text_config": text}, "config.json")
    assert config == replace(GEMMA_3_4B, vocab=262_208)  # 64 embeddings more than the tokenizer has tokens


# Writing.


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_round_trips_through_huggingface(name: str) -> None:
    data = json.loads(json.dumps(to_huggingface(CONFIGS[name], "bfloat16")))
    assert from_huggingface(data, "config.json") == CONFIGS[name]
    assert as_transformers_reads(data) == CONFIGS[name]
    assert str(transformers_config(data).dtype) == "torch.bfloat16"


@pytest.mark.parametrize("name", ["gemma-2-27b", "gemma-3-27b"])
def test_the_keys_of_older_transformers_suffice(name: str) -> None:
    data = to_huggingface(CONFIGS[name], "bfloat16")
    for key in ("rope_parameters", "layer_types"):
        del data[key]
    assert as_transformers_reads(data) == CONFIGS[name]


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
@given(draw=CONFIG_NUMBERS)
@settings(max_examples=100, deadline=None)
def test_tiny_configs_round_trip_through_huggingface(kind: str, draw: dict[str, Any]) -> None:
    config = make_drawn_config(kind, draw)
    written = to_huggingface(config, "float32")
    assert written["model_type"].startswith(kind)
    assert from_huggingface(written, "config.json") == config
    assert as_transformers_reads(written) == config


@pytest.mark.parametrize("name", UNWRITABLE)
def test_models_of_no_architecture_are_not_written(name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        to_huggingface(UNWRITABLE[name], "float32")


@pytest.mark.parametrize(
    "config",
    [
        with_mixers(GEMMA_2_2B, query_scalar=0.5),
        replace(GEMMA_3_270M, width=641),
        replace(GEMMA_2_2B, layers=(with_mixers(GEMMA_2_2B, rope=Rope(5.0)).layers[0], *GEMMA_2_2B.layers[1:])),
    ],
)
def test_models_that_transformers_cannot_express_are_not_written(config: Config) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        to_huggingface(config, "float32")


# Refusals.

SOUND = {"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 10**12),
        ("hidden_size", None),
        ("hidden_size", True),
        ("hidden_size", 64.0),
        ("hidden_size", "64"),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1025),
        ("num_hidden_layers", -1),
        ("intermediate_size", 0),
        ("vocab_size", [1]),
        ("head_dim", 15),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", 0),
        ("query_pre_attn_scalar", -256),
        ("rope_theta", 10**31),
        ("rope_theta", False),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "linear", "factor": 0}),
        ("rope_scaling", {"factor": 8.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": 8.0, "beta_fast": 1}),
        ("rope_scaling", "linear"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
        ("layer_types", [LOCAL] * 5),
        ("layer_types", ["chunked_attention"] * 6),
        ("layer_types", "full"),
        ("sliding_window", None),
        ("sliding_window", 0),
        ("sliding_window_pattern", 0),
        ("attention_bias", True),
        ("partial_rotary_factor", 0.5),
        ("hidden_activation", "gelu"),
        ("hidden_act", "silu"),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 0.0),
        ("tie_word_embeddings", 1),
        ("architectures", "Gemma3ForCausalLM"),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: Any) -> None:
    assert from_huggingface(SOUND, "dir/config.json").width == 64
    with pytest.raises(CheckpointError) as error:
        from_huggingface(SOUND | {key: value}, "dir/config.json")
    message = str(error.value)
    assert message.startswith("dir/config.json: ")
    assert len(message) < 400
    if key not in ("head_dim", "num_key_value_heads"):
        assert f"key '{key}" in message


def test_a_number_too_long_to_print_is_refused() -> None:
    for key in ("hidden_size", "rope_theta"):
        with pytest.raises(CheckpointError, match=f"key '{key}' is a number of more than 30 digits"):
            from_huggingface(SOUND | {key: 10**5000}, "config.json")


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers"])
def test_the_sizes_are_required(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"key '{key}' is missing"):
        from_huggingface({k: v for k, v in SOUND.items() if k != key}, "config.json")


KNOWN = "gemma, gemma2, vaultgemma, gemma3_text, gemma3, paligemma, recurrent_gemma"


@pytest.mark.parametrize("kind", ["llama", "gemma3n"])
def test_an_unsupported_architecture_is_named_with_the_supported(kind: str) -> None:
    message = f"config.json: the model_type '{kind}' is not supported yet; supported are {KNOWN}."
    with pytest.raises(CheckpointError) as error:
        from_huggingface({"model_type": kind}, "config.json")
    assert str(error.value) == message


@pytest.mark.parametrize("kind", [None, 3, ["gemma"]])
def test_a_missing_architecture_is_named(kind: Any) -> None:
    with pytest.raises(CheckpointError, match=f"key 'model_type' is .* a supported architecture: {KNOWN};"):
        from_huggingface({"model_type": kind}, "config.json")


@pytest.mark.parametrize(
    ("key", "value", "feature"),
    [
        ("rope_scaling", {"rope_type": "yarn", "factor": 8.0}, "YaRN"),
        ("rope_parameters", {GLOBAL: {"rope_type": "llama3"}}, "RoPE scaling of type 'llama3'"),
        ("use_bidirectional_attention", True, r"bidirectional attention \(EmbeddingGemma\)"),
        ("architectures", ["Gemma3ForTokenClassification"], "the class Gemma3ForTokenClassification"),
    ],
)
def test_an_unsupported_feature_is_named(key: str, value: Any, feature: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {feature} is not supported yet; supported are "):
        from_huggingface(SOUND | {key: value}, "config.json")


def test_the_text_config_is_named_in_messages() -> None:
    for text in (None, [], {"model_type": "qwen"}, SOUND | {"head_dim": 0}, SOUND | {"tie_word_embeddings": False}):
        with pytest.raises(CheckpointError, match="key 'text_config"):
            from_huggingface({"model_type": "gemma3", "text_config": text}, "config.json")
