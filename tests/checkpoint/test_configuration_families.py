"""Configurations of recurrent and vision models: read as transformers reads them, and unchanged after writing."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.configs.huggingface import from_huggingface, to_huggingface
from gemwright.errors import CheckpointError
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, Vision, pattern
from gemwright.variants import VARIANTS
from tests.checkpoint.configurations import transformers_config

CONFIGS = {name: v.config for name, v in VARIANTS.items() if v.config.vision or v.family == "RecurrentGemma"}


def recurrent_as_transformers_reads(data: dict[str, Any]) -> Config:
    c = transformers_config(data)
    rope = c.rope_parameters
    attention = Attention(
        c.num_attention_heads,
        c.num_key_value_heads,
        c.head_dim,
        query_scalar=c.head_dim,
        rope=Rope(rope["rope_theta"], fraction=rope["partial_rotary_factor"]),
        window=c.attention_window_size + 1,  # the released code attends to one token more
        out_bias=True,
    )
    mixers = {"linear_attention": Recurrent(c.lru_width, c.num_attention_heads, c.conv1d_width)}
    mixers["sliding_attention"] = attention  # type: ignore[assignment]
    return Config(
        c.hidden_size,
        c.vocab_size,
        tuple(Layer(mixers[kind], Mlp(c.intermediate_size // 2, bias=True)) for kind in c.layers_block_type),
        max_length=2**31 - 1,
        final_soft_cap=c.logits_soft_cap,
        tied=c.tie_word_embeddings,
        norm_eps=c.rms_norm_eps,
        embed_scale=torch.tensor(c.hidden_size**0.5, dtype=torch.bfloat16).item(),
    )


RECURRENT = st.fixed_dictionaries(
    {
        "model_type": st.just("recurrent_gemma"),
        "hidden_size": st.sampled_from([120, 240, 960]),
        "intermediate_size": st.sampled_from([96, 97, 1440]),
        "num_hidden_layers": st.integers(1, 9),
    },
    optional={
        "num_attention_heads": st.sampled_from([10, 5]),
        "num_key_value_heads": st.sampled_from([1, 5, None]),
        "lru_width": st.sampled_from([None, 80]),
        "conv1d_width": st.sampled_from([2, 4]),
        "attention_window_size": st.sampled_from([7, 2048]),
        "logits_soft_cap": st.sampled_from([30.0, 20.0]),
        "rms_norm_eps": st.just(1e-5),
        "vocab_size": st.sampled_from([300, 256_000]),
        "tie_word_embeddings": st.booleans(),
        "hidden_activation": st.just("gelu_pytorch_tanh"),
        "rope_theta": st.sampled_from([10_000, 5e5]),
        "partial_rotary_factor": st.sampled_from([0.5, 1.0]),
        "rope_parameters": st.sampled_from(
            [None, {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 1.0}]
        ),
        "block_types": st.lists(st.sampled_from(["recurrent", "attention"]), min_size=1, max_size=4),
        "embeddings_scale_by_sqrt_dim": st.just(True),
        "w_init_variance_scale": st.just(0.01),
        "architectures": st.just(["RecurrentGemmaForCausalLM"]),
    },
)


@given(data=RECURRENT)
@settings(max_examples=150, deadline=None)
def test_sparse_recurrent_files_are_read_as_in_transformers(data: dict[str, Any]) -> None:
    config = from_huggingface(data, "config.json")
    assert config == recurrent_as_transformers_reads(data)
    written = json.loads(json.dumps(to_huggingface(config, "bfloat16")))
    assert from_huggingface(written, "config.json") == recurrent_as_transformers_reads(written) == config


def test_the_published_recurrent_file() -> None:
    data = {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "_block_types": ["recurrent", "recurrent", "attention"],
        "attention_bias": False,
        "attention_window_size": 2048,
        "conv1d_width": 4,
        "embeddings_scale_by_sqrt_dim": True,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2560,
        "intermediate_size": 15360,
        "logits_soft_cap": 30.0,
        "lru_width": 2560,
        "num_attention_heads": 10,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    }
    assert from_huggingface(data, "config.json") == CONFIGS["recurrentgemma-2b"]
    other = from_huggingface(data | {"_block_types": ["attention", "recurrent"]}, "config.json")
    assert [type(layer.mixer) for layer in other.layers[:3]] == [Attention, Recurrent, Attention]


def vision_as_transformers_reads(data: dict[str, Any]) -> Vision:
    c = transformers_config(data)
    v, normed = c.vision_config, c.model_type == "gemma3"
    return Vision(
        v.image_size,
        c.mm_tokens_per_image if normed else c.text_config.num_image_tokens,
        projector="normed" if normed else "affine",
        patch=v.patch_size,
        width=v.hidden_size,
        depth=v.num_hidden_layers,
        heads=v.num_attention_heads,
        hidden=v.intermediate_size,
        norm_eps=v.layer_norm_eps,
    )


TOWERS = st.fixed_dictionaries(
    {},
    optional={
        "model_type": st.just("siglip_vision_model"),
        "image_size": st.sampled_from([448, 896]),
        "patch_size": st.sampled_from([14, 28]),
        "hidden_size": st.sampled_from([1152, 96]),
        "num_attention_heads": st.sampled_from([16, 4]),
        "num_hidden_layers": st.integers(1, 27),
        "intermediate_size": st.just(4304),
        "layer_norm_eps": st.just(1e-5),
        "projection_dim": st.just(64),
        "vision_use_head": st.booleans(),
        "num_channels": st.just(3),
    },
)
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}


@given(tower=TOWERS, kind=st.sampled_from(["gemma", "gemma2", "gemma3_text"]), side=st.sampled_from([1, 2, 4]))
@settings(max_examples=150, deadline=None)
def test_sparse_towers_are_read_as_in_transformers(tower: dict[str, Any], kind: str, side: int) -> None:
    heads, width = tower.get("num_attention_heads", 12), tower.get("hidden_size", 768)
    image, patch = tower.get("image_size", 224), tower.get("patch_size", 16)
    data: dict[str, Any] = {"text_config": TEXT | {"model_type": kind}, "vision_config": tower}
    if kind == "gemma3_text":
        tower.pop("projection_dim", None)
        data |= {"model_type": "gemma3", "mm_tokens_per_image": side**2}
    else:
        data |= {"model_type": "paligemma", "projection_dim": 64, "image_token_index": 257_152}
    if width % heads or image % patch or (kind == "gemma3_text" and (image // patch) % side):
        with pytest.raises(CheckpointError, match=r"config\.json: key '(vision_config|mm_tokens_per_image)"):
            from_huggingface(data, "config.json")
        return
    config = from_huggingface(data, "config.json")
    assert config.vision == vision_as_transformers_reads(data)
    written = json.loads(json.dumps(to_huggingface(config, "bfloat16")))
    assert from_huggingface(written, "config.json") == config
    assert vision_as_transformers_reads(written) == config.vision


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_round_trips_through_huggingface(name: str) -> None:
    config = CONFIGS[name]
    data = json.loads(json.dumps(to_huggingface(config, "bfloat16")))
    assert from_huggingface(data, "config.json") == config
    if config.vision is None:
        assert recurrent_as_transformers_reads(data) == config
    else:
        assert vision_as_transformers_reads(data) == config.vision
        decoder = transformers_config(data).text_config.to_dict() | {"use_bidirectional_attention": None}
        assert from_huggingface(decoder, "config.json") == replace(config, vision=None)
    assert str(transformers_config(data).dtype) == "torch.bfloat16"


def test_the_published_paligemma_file_is_sparse() -> None:
    text = {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 256,
        "torch_dtype": "float32",
        "vocab_size": 257216,
    }
    tower = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "num_image_tokens": 256,
        "patch_size": 14,
        "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast",
        "vision_use_head": False,
    }
    data = {
        "_vocab_size": 257152,
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "hidden_size": 2048,
        "image_token_index": 257152,
        "model_type": "paligemma",
        "projection_dim": 2048,
        "text_config": text,
        "vision_config": tower,
    }
    assert from_huggingface(data, "config.json") == CONFIGS["paligemma-3b-224"]  # without the padding of the table
    large = data | {"vision_config": tower | {"image_size": 448}}
    assert from_huggingface(large, "config.json") == CONFIGS["paligemma-3b-448"]


def test_the_published_gemma3_file_is_sparse() -> None:
    data = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }
    assert from_huggingface(data, "config.json") == replace(CONFIGS["gemma-3-4b"], vocab=262_208)


# Errors.

GRIFFIN = {"model_type": "recurrent_gemma", "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 2}
GRIFFIN |= {"intermediate_size": 96}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 10**12),
        ("intermediate_size", 1),
        ("num_hidden_layers", 10**9),
        ("head_dim", 16),
        ("num_attention_heads", 65),
        ("lru_width", 63),
        ("lru_width", 0),
        ("conv1d_width", 10**6),
        ("attention_window_size", 2**31),
        ("logits_soft_cap", None),
        ("block_types", []),
        ("block_types", ["conv"]),
        ("block_types", ["recurrent"] * 2000),
        ("_block_types", "recurrent"),
        ("embeddings_scale_by_sqrt_dim", False),
        ("partial_rotary_factor", 0.0),
        ("partial_rotary_factor", 1.5),
        ("partial_rotary_factor", 0.1),
        ("rope_parameters", {"partial_rotary_factor": "half"}),
        ("rope_parameters", {"rope_type": "yarn"}),
        ("attention_bias", True),
        ("hidden_activation", "silu"),
    ],
)
def test_a_bad_recurrent_value_is_refused_by_name(key: str, value: Any) -> None:
    from_huggingface(GRIFFIN, "dir/config.json")
    with pytest.raises(CheckpointError, match=rf"^dir/config\.json: key '([a-z_]+\.)?{key}"):
        from_huggingface(GRIFFIN | {key: value}, "dir/config.json")


WITH_VISION: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": TEXT,
    "vision_config": {},
    "mm_tokens_per_image": 49,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 10**9),
        ("image_size", [224, 224]),
        ("image_size", 8),
        ("image_size", 225),
        ("patch_size", 0),
        ("hidden_size", 10**12),
        ("num_attention_heads", 7),
        ("num_hidden_layers", 10**9),
        ("intermediate_size", None),
        ("layer_norm_eps", 0),
        ("hidden_act", "quick_gelu"),
        ("num_channels", 1),
        ("model_type", "clip_vision_model"),
    ],
)
def test_a_bad_tower_is_refused_by_name(key: str, value: Any) -> None:
    from_huggingface(WITH_VISION, "config.json")
    with pytest.raises(CheckpointError, match=rf"^config\.json: key 'vision_config\.{key}"):
        from_huggingface(WITH_VISION | {"vision_config": {key: value}}, "config.json")


@pytest.mark.parametrize("tokens", [0, 48, 64, 400, 10**12, "256", None])
def test_the_tokens_of_an_image_are_a_square_that_divides_the_patches(tokens: Any) -> None:
    with pytest.raises(CheckpointError, match=r"key 'mm_tokens_per_image' is "):
        from_huggingface(WITH_VISION | {"mm_tokens_per_image": tokens}, "config.json")


def test_a_paligemma_needs_a_projection_to_its_width_and_bidirectional_prompts() -> None:
    data = {"model_type": "paligemma", "text_config": TEXT, "vision_config": {}, "projection_dim": 64}
    assert from_huggingface(data, "config.json").layers[0].mixer.kv_heads == 1
    for change in (
        {"projection_dim": 65},
        {"vision_config": {"projection_dim": 65}},
        {"text_config": TEXT | {"use_bidirectional_attention": False}},
        {"text_config": TEXT | {"model_type": "gemma3_text"}},
        {"text_config": None},
    ):
        with pytest.raises(CheckpointError, match=r"^config\.json: key "):
            from_huggingface(data | change, "config.json")


RECURRENT_2B, PALIGEMMA = CONFIGS["recurrentgemma-2b"], CONFIGS["paligemma2-3b-224"]
UNWRITABLE = {
    "embeddings unscaled": replace(RECURRENT_2B, embed_scale=1.0),
    "no window": replace(
        RECURRENT_2B,
        layers=pattern(3, *(replace(x, mixer=replace(x.mixer, window=None)) for x in RECURRENT_2B.layers[2:3])),
    ),
    "no cap": replace(RECURRENT_2B, final_soft_cap=None),
    "a context": replace(RECURRENT_2B, max_length=8192),
    "two widths": replace(RECURRENT_2B, layers=(*RECURRENT_2B.layers, Layer(Recurrent(20, 10), Mlp(8, bias=True)))),
    "recurrent without biases": replace(RECURRENT_2B, layers=(Layer(Recurrent(2560, 10), Mlp(8)),)),
    "averaged patches in a PaliGemma": replace(PALIGEMMA, vision=Vision(224, 64, projector="affine")),
    "Gemma 3's projector in a PaliGemma": replace(PALIGEMMA, vision=Vision(224, 256, projector="normed")),
    "scaled embeddings": replace(PALIGEMMA, embed_scale=3.0),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_models_of_no_architecture_are_not_written(name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        to_huggingface(UNWRITABLE[name], "float32")
