"""Configurations of every format: read as their owners read them, and the same again after writing."""

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.gguf import open_gguf, write_gguf
from gemwright.checkpoint.gguf_configuration import from_gguf, to_gguf
from gemwright.checkpoint.huggingface import from_huggingface, read_generation_config, to_huggingface
from gemwright.checkpoint.tensors import TensorInfo
from gemwright.errors import CheckpointError
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope, pattern
from gemwright.variants import GEMMA_2_2B, GEMMA_2B, GEMMA_3_4B, GEMMA_3_270M, VARIANTS

LOCAL, GLOBAL = "sliding_attention", "full_attention"
DECODERS = ("Gemma 1", "CodeGemma", "Gemma 2", "Gemma 3")
CONFIGS = {n: replace(v.config, vision=None) for n, v in VARIANTS.items() if v.family in DECODERS}


def tensors_of(config: Config, rows: int | None = None) -> dict[str, TensorInfo]:
    table = TensorInfo((rows or config.vocab, config.width), "F32", 0, 0)
    return {"token_embd.weight": table} | ({} if config.tied else {"output.weight": table})


def with_mixers(config: Config, **changes: Any) -> Config:
    layers = tuple(replace(layer, mixer=replace(layer.mixer, **changes)) for layer in config.layers)
    return replace(config, layers=layers)


# What transformers' own configuration objects say, as its modeling files use it.


def transformers_config(data: dict[str, Any]) -> Any:
    data = copy.deepcopy(data)  # the classes change what they are given
    return transformers.CONFIG_MAPPING[data["model_type"]].from_dict(data)


def as_transformers_reads(data: dict[str, Any]) -> Config:
    outer = transformers_config(data)
    c = outer.text_config if outer.model_type == "gemma3" else outer
    gemma1 = c.model_type == "gemma"

    def layer(kind: str) -> Layer:
        rope = c.rope_parameters.get(kind, c.rope_parameters)
        mixer = Attention(
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            query_scalar=c.head_dim if gemma1 else c.query_pre_attn_scalar,
            rope=Rope(rope["rope_theta"], rope["factor"] if rope["rope_type"] == "linear" else 1.0),
            window=c.sliding_window if kind == LOCAL else None,
            soft_cap=c.attn_logit_softcapping if c.model_type == "gemma2" else None,
            qk_norm=c.model_type == "gemma3_text",
        )
        return Layer(mixer, Mlp(c.intermediate_size), post_norms=not gemma1)

    return Config(
        width=c.hidden_size,
        vocab=c.vocab_size,
        layers=tuple(map(layer, [GLOBAL] * c.num_hidden_layers if gemma1 else c.layer_types)),
        context=c.max_position_embeddings,
        final_soft_cap=None if gemma1 else c.final_logit_softcapping,
        tied=outer.tie_word_embeddings,
        norm_eps=c.rms_norm_eps,
    )


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
def test_sparse_files_mean_what_transformers_reads(kind: str, data: st.DataObject) -> None:
    sparse = data.draw(sparse_configs(kind))
    assert from_huggingface(sparse, "config.json") == as_transformers_reads(sparse)


@given(sparse=sparse_configs("gemma3_text"), tied=st.sampled_from([{}, {"tie_word_embeddings": False}]))
@settings(max_examples=50, deadline=None)
def test_text_tower_of_a_multimodal_file(sparse: dict[str, Any], tied: dict[str, bool]) -> None:
    sparse.pop("tie_word_embeddings", None)
    data = {"model_type": "gemma3", "text_config": sparse, "vision_config": {"image_size": 256}, **tied}
    data["mm_tokens_per_image"] = 1  # a picture must fit the window of any size that was drawn
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
    assert config == replace(GEMMA_3_4B, vocab=262_208)  # 64 rows more than the tokenizer has tokens


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


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_round_trips_through_gguf(name: str, tmp_path: Any) -> None:
    config = CONFIGS[name]
    metadata = to_gguf(config)
    assert from_gguf(metadata, tensors_of(config), "m.gguf") == config
    write_gguf(tmp_path / "m.gguf", metadata, [])
    assert from_gguf(open_gguf(tmp_path / "m.gguf").metadata, tensors_of(config), "m.gguf") == config


TINY = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([2, 4]),
        "kv_heads": st.sampled_from([1, 2]),
        "head_dim": st.sampled_from([16, 32]),
        "width": st.sampled_from([32, 64]),
        "query_scale": st.sampled_from(["head_dim", "width per head", "other"]),
        "window": st.sampled_from([3, 8]),
        "local": st.lists(st.booleans(), min_size=1, max_size=9),
        "base": st.sampled_from([1e4, 5e5]),
        "scale": st.sampled_from([1.0, 4.0]),
        "local_rope": st.tuples(st.sampled_from([1e4, 2e4]), st.sampled_from([1.0, 1.0, 2.0])),
        "soft_cap": st.sampled_from([None, 50.0]),
        "final_soft_cap": st.sampled_from([None, 30.0]),
        "tied": st.booleans(),
        "norm_eps": st.sampled_from([1e-6, 1e-5]),
    }
)


def tiny_config(kind: str, draw: dict[str, Any]) -> Config:
    """A configuration that transformers can express. Built here, for hypothesis wants strategies to be plain."""
    gemma1, gemma3 = kind == "gemma", kind == "gemma3"
    scalars = {"head_dim": draw["head_dim"], "width per head": draw["width"] // draw["heads"], "other": 24}
    everywhere = Attention(
        draw["heads"],
        draw["kv_heads"],
        draw["head_dim"],
        query_scalar=draw["head_dim"] if gemma1 else scalars[draw["query_scale"]],
        rope=Rope(draw["base"], draw["scale"]),
        soft_cap=draw["soft_cap"] if kind == "gemma2" else None,
        qk_norm=gemma3,
    )
    local = replace(everywhere, window=draw["window"])
    if gemma3:
        local = replace(local, rope=Rope(*draw["local_rope"]))
    mixers = [local if flag and not gemma1 else everywhere for flag in draw["local"]]
    return Config(
        width=draw["width"],
        vocab=100,
        layers=tuple(Layer(mixer, Mlp(48), post_norms=not gemma1) for mixer in mixers),
        context=64,
        final_soft_cap=None if gemma1 else draw["final_soft_cap"],
        tied=draw["tied"],
        norm_eps=draw["norm_eps"],
    )


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
@given(draw=TINY)
@settings(max_examples=100, deadline=None)
def test_tiny_configs_round_trip_through_huggingface(kind: str, draw: dict[str, Any]) -> None:
    config = tiny_config(kind, draw)
    written = to_huggingface(config, "float32")
    assert written["model_type"].startswith(kind)
    assert from_huggingface(written, "config.json") == config
    assert as_transformers_reads(written) == config


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
@given(draw=TINY)
@settings(max_examples=100, deadline=None)
def test_tiny_configs_round_trip_through_gguf_or_are_refused(kind: str, draw: dict[str, Any]) -> None:
    config = tiny_config(kind, draw)
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


UNWRITABLE = {
    "no layers": replace(GEMMA_2B, layers=()),
    "layers of two widths": replace(GEMMA_2B, layers=(*GEMMA_2B.layers[1:], replace(GEMMA_2B.layers[0], mlp=Mlp(8)))),
    "two windows": replace(GEMMA_2_2B, layers=GEMMA_2_2B.layers + with_mixers(GEMMA_2_2B, window=9).layers),
    "norms of queries alone": with_mixers(GEMMA_2B, qk_norm=True),
    "window in a Gemma 1": with_mixers(GEMMA_2B, window=9),
    "query scale in a Gemma 1": with_mixers(GEMMA_2B, query_scalar=144),
    "cap in a Gemma 1": replace(GEMMA_2B, final_soft_cap=30.0),
    "attention cap in a Gemma 3": with_mixers(GEMMA_3_270M, soft_cap=50.0),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_no_architecture_computes_is_not_written(name: str) -> None:
    for write in (to_gguf, lambda config: to_huggingface(config, "float32")):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write(UNWRITABLE[name])


@pytest.mark.parametrize(
    "config",
    [
        with_mixers(GEMMA_2_2B, query_scalar=0.5),
        replace(GEMMA_3_270M, width=641),
        replace(GEMMA_2_2B, layers=(with_mixers(GEMMA_2_2B, rope=Rope(5.0)).layers[0], *GEMMA_2_2B.layers[1:])),
    ],
)
def test_what_transformers_cannot_express_is_not_written(config: Config) -> None:
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
        ("rope_scaling", {"rope_type": "yarn", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "linear", "factor": 0}),
        ("rope_scaling", {"factor": 8.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": 8.0, "beta_fast": 1}),
        ("rope_scaling", "linear"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
        ("rope_parameters", {GLOBAL: {"rope_type": "llama3"}}),
        ("layer_types", [LOCAL] * 5),
        ("layer_types", ["chunked_attention"] * 6),
        ("layer_types", "full"),
        ("sliding_window", None),
        ("sliding_window", 0),
        ("sliding_window_pattern", 0),
        ("attention_bias", True),
        ("use_bidirectional_attention", True),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"quant_method": "awq"}),
        ("quantization_config", {"quant_method": ["gemwright"]}),
        ("quantization_config", "gemwright"),
        ("hidden_activation", "gelu"),
        ("hidden_act", "silu"),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 0.0),
        ("tie_word_embeddings", 1),
        ("architectures", ["Gemma3ForSequenceClassification"]),
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


@pytest.mark.parametrize("kind", ["llama", "gemma3n", None, 3, ["gemma"]])
def test_an_unknown_architecture_is_named_beside_the_known(kind: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"key 'model_type' is .* gemma2, gemma3_text, gemma3, paligemma, recurrent_gemma;"
    ):
        from_huggingface({"model_type": kind}, "config.json")


def test_the_text_config_is_named_in_messages() -> None:
    for text in (None, [], {"model_type": "qwen"}, SOUND | {"head_dim": 0}, SOUND | {"tie_word_embeddings": False}):
        with pytest.raises(CheckpointError, match="key 'text_config"):
            from_huggingface({"model_type": "gemma3", "text_config": text}, "config.json")


# GGUF.


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
        ("rope.scaling.type", "yarn"),
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


def test_gguf_refuses_what_is_missing_or_unknown() -> None:
    tensors = tensors_of(GEMMA_3_270M)
    with pytest.raises(CheckpointError, match=r"'general.architecture' is 'llama'.*gemma, gemma2, gemma3"):
        from_gguf(GGUF | {"general.architecture": "llama"}, tensors, "m.gguf")
    with pytest.raises(CheckpointError, match=r"'gemma3.context_length' is missing"):
        from_gguf({k: v for k, v in GGUF.items() if k != "gemma3.context_length"}, tensors, "m.gguf")
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is missing"):
        from_gguf(GGUF, {}, "m.gguf")
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is of shape \(640, 640, 1\)"):
        from_gguf(GGUF, {"token_embd.weight": TensorInfo((640, 640, 1), "F32", 0, 0)}, "m.gguf")
    with pytest.raises(CheckpointError, match=r"300 tokens .* only 299 rows"):
        from_gguf(GGUF | {"tokenizer.ggml.tokens": ["a"] * 300}, tensors_of(GEMMA_3_270M, rows=299), "m.gguf")


# generation_config.json


def test_generation_config_is_the_one_transformers_reads() -> None:
    data = {
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "eos_token_id": [1, 106],
        "pad_token_id": 0,
        "top_k": 64,
        "top_p": 0.95,
        "min_p": None,
        "temperature": 1.0,
        "repetition_penalty": 1.1,
        "max_new_tokens": 20,
        "max_length": 40,
        "transformers_version": "4.51.3",
    }
    values = read_generation_config(data, "generation_config.json")
    assert values == {k: data[k] for k in data.keys() - {"cache_implementation", "min_p", "transformers_version"}}
    theirs = transformers.GenerationConfig.from_dict(values)
    assert values == {key: getattr(theirs, key) for key in values}
    assert read_generation_config(values, "generation_config.json") == values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_sample", 1),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 1.5),
        ("min_p", "0"),
        ("repetition_penalty", 0.0),
        ("eos_token_id", []),
        ("eos_token_id", [1, -1]),
        ("eos_token_id", [[1]]),
        ("eos_token_id", True),
        ("bos_token_id", 10**30),
        ("max_new_tokens", 0),
    ],
)
def test_a_bad_generation_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"g.json: key '{key}' is "):
        read_generation_config({key: value}, "g.json")
