"""Trees of DeepMind's and big_vision's checkpoints, converted from Hugging Face's tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.tiny.hf import VISION_HEADS, VISION_LAYERS

Tensors = Mapping[str, NDArray[Any]]


def _split_heads(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Convert [count * H, D] to [count, D, H]."""
    return np.stack([head.T for head in np.split(rows, count)])


def make_flax_tree(weights: Tensors, heads: int, kv_heads: int, *, swapped: bool, padding: int = 0) -> dict[str, Any]:
    """Convert a text model to the tree of DeepMind's releases.

    Args:
        weights: Hugging Face's tensors by name.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        swapped: Whether the gates are [2, F, D], as in later releases, or [2, D, F].
        padding: Number of zero embeddings after the vocabulary.
    """
    table = weights["model.embed_tokens.weight"]
    table = np.concatenate([table, np.zeros((padding, table.shape[1]), table.dtype)])
    tree: dict[str, Any] = {
        "transformer/embedder": {"input_embedding": table},
        "transformer/final_norm": {"scale": weights["model.norm.weight"]},
    }
    sandwich = any("pre_feedforward_layernorm" in name for name in weights)
    norms = {"input_layernorm": "pre_attention_norm"}
    if sandwich:
        norms["post_attention_layernorm"] = "post_attention_norm"
        norms["pre_feedforward_layernorm"] = "pre_ffw_norm"
        norms["post_feedforward_layernorm"] = "post_ffw_norm"
    else:
        norms["post_attention_layernorm"] = "pre_ffw_norm"
    for layer in range(sum(name.endswith("q_proj.weight") for name in weights)):
        their, ours = f"model.layers.{layer}", f"transformer/layer_{layer}"

        counts = {"q": heads, "k": kv_heads, "v": kv_heads}
        q, k, v = (_split_heads(weights[f"{their}.self_attn.{name}_proj.weight"], n) for name, n in counts.items())
        if heads == kv_heads:
            tree[f"{ours}/attn/qkv_einsum"] = {"w": np.stack([q, k, v])}
        else:
            tree[f"{ours}/attn/q_einsum"] = {"w": q}
            tree[f"{ours}/attn/kv_einsum"] = {"w": np.stack([k, v])}
        out = weights[f"{their}.self_attn.o_proj.weight"]
        tree[f"{ours}/attn/attn_vec_einsum"] = {"w": np.stack([part.T for part in np.split(out, heads, axis=1)])}
        gates = [weights[f"{their}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        tree[f"{ours}/mlp/gating_einsum"] = {"w": np.stack(gates if swapped else [gate.T for gate in gates])}
        tree[f"{ours}/mlp/linear"] = {"w": np.ascontiguousarray(weights[f"{their}.mlp.down_proj.weight"].T)}
        for name, place in norms.items():
            tree[f"{ours}/{place}"] = {"scale": weights[f"{their}.{name}.weight"]}
        for name in ("query", "key"):
            if (key := f"{their}.self_attn.{name[0]}_norm.weight") in weights:
                tree[f"{ours}/attn/_{name}_norm"] = {"scale": weights[key]}
    return tree


def make_griffin_tree(weights: Tensors, padding: int = 0) -> dict[str, Any]:
    """Convert a RecurrentGemma to DeepMind's tree, with `padding` zero embeddings after the vocabulary."""
    table = weights["model.embed_tokens.weight"]
    table = np.concatenate([table, np.zeros((padding, table.shape[1]), table.dtype)])
    tree: dict[str, Any] = {
        "embedder": {"input_embedding": table},
        "final_norm": {"scale": weights["model.final_norm.weight"]},
    }
    depth = sum(name.endswith("temporal_pre_norm.weight") for name in weights)
    for layer in range(depth):
        ours = {name.split(".", 3)[3]: value for name, value in weights.items() if f"layers.{layer}." in name}

        def linear(name: str, ours: Tensors = ours) -> dict[str, Any]:
            bias = {"bias": ours[f"{name}.bias"]} if f"{name}.bias" in ours else {}
            return {"kernel": np.ascontiguousarray(ours[f"{name}.weight"].T), **bias}

        gates = [f"mlp_block.{name}_proj" for name in ("gate", "up")]
        block: dict[str, Any] = {
            "temporal_pre_norm": {"scale": ours["temporal_pre_norm.weight"]},
            "channel_pre_norm": {"scale": ours["channel_pre_norm.weight"]},
            "mlp_block": {
                "ffw_up": {
                    "w": np.stack([ours[f"{name}.weight"].T for name in gates]),
                    "b": np.stack([ours[f"{name}.bias"].reshape(1, 1, -1) for name in gates]),
                },
                "ffw_down": linear("mlp_block.down_proj"),
            },
        }
        if "temporal_block.q_proj.weight" in ours:
            names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "final": "o_proj"}
            block["attention_block"] = {f"proj_{key}": linear(f"temporal_block.{name}") for key, name in names.items()}
        else:
            conv, gate = ours["temporal_block.conv_1d.weight"], "temporal_block.rg_lru"
            block["recurrent_block"] = {
                **{name: linear(f"temporal_block.{name}") for name in ("linear_x", "linear_y", "linear_out")},
                "conv_1d": {"w": np.ascontiguousarray(conv[:, 0].T), "b": ours["temporal_block.conv_1d.bias"]},
                "rg_lru": {
                    "a_param": ours[f"{gate}.recurrent_param"],
                    "input_gate": {"w": ours[f"{gate}.input_gate_weight"], "b": ours[f"{gate}.input_gate_bias"]},
                    "a_gate": {"w": ours[f"{gate}.recurrent_gate_weight"], "b": ours[f"{gate}.recurrent_gate_bias"]},
                },
            }
        tree[f"blocks.{layer}"] = block
    return tree


def make_siglip_layer(weights: Tensors, heads: int, layer: int) -> dict[str, NDArray[Any]]:
    """Return one layer of the vision tower in flax's names and shapes."""
    ours = {
        name.split(f"encoder.layers.{layer}.")[1]: value
        for name, value in weights.items()
        if f"vision_tower.encoder.layers.{layer}." in name
    }
    made: dict[str, NDArray[Any]] = {}
    for index in (0, 1):
        made[f"LayerNorm_{index}/scale"] = ours[f"layer_norm{index + 1}.weight"]
        made[f"LayerNorm_{index}/bias"] = ours[f"layer_norm{index + 1}.bias"]
        made[f"MlpBlock_0/Dense_{index}/kernel"] = ours[f"mlp.fc{index + 1}.weight"].T
        made[f"MlpBlock_0/Dense_{index}/bias"] = ours[f"mlp.fc{index + 1}.bias"]
    attention, width = "MultiHeadDotProductAttention_0", ours["layer_norm1.weight"].size
    for name, key in {"q": "query", "k": "key", "v": "value"}.items():
        made[f"{attention}/{key}/kernel"] = ours[f"self_attn.{name}_proj.weight"].T.reshape(width, heads, -1)
        made[f"{attention}/{key}/bias"] = ours[f"self_attn.{name}_proj.bias"].reshape(heads, -1)
    made[f"{attention}/out/kernel"] = ours["self_attn.out_proj.weight"].T.reshape(heads, -1, width)
    made[f"{attention}/out/bias"] = ours["self_attn.out_proj.bias"]
    return made


def make_siglip_frame(weights: Tensors) -> dict[str, NDArray[Any]]:
    """Return the parameters of the vision tower outside its layers, in flax's names and shapes."""
    embeddings, norm = "vision_tower.embeddings", "vision_tower.post_layernorm"
    return {
        "embedding/kernel": weights[f"{embeddings}.patch_embedding.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": weights[f"{embeddings}.patch_embedding.bias"],
        "pos_embedding": weights[f"{embeddings}.position_embedding.weight"][None],
        "Transformer/encoder_norm/scale": weights[f"{norm}.weight"],
        "Transformer/encoder_norm/bias": weights[f"{norm}.bias"],
    }


def make_big_vision_arrays(weights: Tensors, *, swapped: bool = False) -> dict[str, NDArray[Any]]:
    """Convert a PaliGemma to big_vision's arrays.

    Args:
        weights: Hugging Face's tensors by the names of a saved file.
        swapped: Whether the gates are [2, F, D], as in later releases, or [2, D, F].
    """
    text = {name.removeprefix("language_model.model."): value for name, value in weights.items()}
    layers: dict[str, list[NDArray[Any]]] = {}
    depth = sum(name.endswith("input_layernorm.weight") for name in text)
    norms = {"input": "pre_attention_norm", "post_attention": "pre_ffw_norm"}
    if "layers.0.pre_feedforward_layernorm.weight" in text:
        norms |= {"post_attention": "post_attention_norm"}
        norms |= {"pre_feedforward": "pre_ffw_norm", "post_feedforward": "post_ffw_norm"}
    for layer in range(depth):
        ours = {
            key.removeprefix(f"layers.{layer}."): v for key, v in text.items() if key.startswith(f"layers.{layer}.")
        }
        attention = {name: ours[f"self_attn.{name}_proj.weight"] for name in "qkvo"}
        gates = [ours[f"mlp.{name}_proj.weight"] for name in ("gate", "up")]
        stacked = {
            "attn/q_einsum/w": _split_heads(attention["q"], 2),
            "attn/kv_einsum/w": np.stack([_split_heads(attention[name], 1) for name in "kv"]),
            "attn/attn_vec_einsum/w": np.stack([part.T for part in np.split(attention["o"], 2, axis=1)]),
            "mlp/gating_einsum": np.stack(gates if swapped else [gate.T for gate in gates]),
            "mlp/linear": ours["mlp.down_proj.weight"].T,
        } | {f"{name}/scale": ours[f"{their}_layernorm.weight"] for their, name in norms.items()}
        for name, value in stacked.items():
            layers.setdefault(f"params/llm/layers/{name}", []).append(value)
    for layer in range(VISION_LAYERS):
        for name, value in make_siglip_layer(weights, VISION_HEADS, layer).items():
            layers.setdefault(f"params/img/Transformer/encoderblock/{name}", []).append(value)
    arrays = {name: np.stack(values) for name, values in layers.items()}
    arrays |= {f"params/img/{name}": value for name, value in make_siglip_frame(weights).items()}
    arrays |= {
        "params/img/head/kernel": weights["multi_modal_projector.linear.weight"].T,
        "params/img/head/bias": weights["multi_modal_projector.linear.bias"],
        "params/llm/embedder/input_embedding": text["embed_tokens.weight"],
        "params/llm/final_norm/scale": text["norm.weight"],
    }
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}
