"""Small random models that remember or see, as transformers, Orbax and big_vision keep them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny import tiny_vocabulary
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from gemwright.checkpoint.vocabulary import add_control_tokens
from gemwright.text.vocabulary import Vocabulary

KINDS = ("recurrent_gemma", "paligemma", "paligemma2", "gemma3")
IMAGE, PATCH = 28, 7  # four by four patches

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}
_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "vision_use_head": False,
}


def vocabulary(kind: str) -> Vocabulary:
    """Gemma's pieces as the SentencePiece files of the family have them."""
    gemma3 = ("<start_of_image>", "<end_of_image>")
    return add_control_tokens(tiny_vocabulary(), *(gemma3 if kind == "gemma3" else ()))


def rows(kind: str) -> int:
    """Rows of the embedding; a PaliGemma has 1024 places and 128 pieces of masks more than Gemma's tokenizer."""
    return vocabulary(kind).size + (1152 if kind.startswith("paligemma") else 0)


def model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model in which every parameter is random."""
    torch.manual_seed(0)
    text = _TEXT | {"vocab_size": rows(kind)}
    if kind == "recurrent_gemma":
        sizes = text | {"intermediate_size": 192, "num_hidden_layers": 5, "attention_window_size": 8}
        del sizes["head_dim"], sizes["max_position_embeddings"]
        made: PreTrainedModel = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**sizes))
    elif kind == "gemma3":
        text |= {"model_type": "gemma3_text", "query_pre_attn_scalar": 32, "sliding_window": 8}
        config = Gemma3Config(text_config=text, vision_config=dict(_VISION), mm_tokens_per_image=4)
        made = Gemma3ForConditionalGeneration(config)
    else:
        later = {"query_pre_attn_scalar": 32, "sliding_window": 8}
        text |= {"model_type": "gemma"} if kind == "paligemma" else {"model_type": "gemma2", **later}
        config = PaliGemmaConfig(text_config=text, vision_config=dict(_VISION), projection_dim=64, hidden_size=64)
        config.image_token_index = rows(kind)
        made = PaliGemmaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.15)
    return made.to(dtype).eval()


def huggingface(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    """The model of `kind` as transformers saves it, with a tokenizer."""
    model(kind, dtype).save_pretrained(folder, **save)
    (folder / "tokenizer.model").write_bytes(vocabulary(kind).sentencepiece_model())
    return folder


Tensors = Mapping[str, NDArray[Any]]


def _heads(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """[count * H, D] -> [count, D, H]."""
    return np.stack([head.T for head in np.split(rows, count)])


def griffin_tree(weights: Tensors, padding: int = 0) -> dict[str, Any]:
    """DeepMind's tree of a RecurrentGemma, made from Hugging Face's tensors."""
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


def siglip(weights: Tensors, heads: int, layer: int) -> dict[str, NDArray[Any]]:
    """One layer of the tower in flax's names and shapes."""
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


def siglip_frame(weights: Tensors) -> dict[str, NDArray[Any]]:
    """What the tower has beside its layers."""
    embeddings, norm = "vision_tower.embeddings", "vision_tower.post_layernorm"
    return {
        "embedding/kernel": weights[f"{embeddings}.patch_embedding.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": weights[f"{embeddings}.patch_embedding.bias"],
        "pos_embedding": weights[f"{embeddings}.position_embedding.weight"][None],
        "Transformer/encoder_norm/scale": weights[f"{norm}.weight"],
        "Transformer/encoder_norm/bias": weights[f"{norm}.bias"],
    }


def big_vision(weights: Tensors, *, swapped: bool = False) -> dict[str, NDArray[Any]]:
    """big_vision's arrays of a PaliGemma, made from Hugging Face's tensors by their names as transformers saves them.

    Args:
        weights: Those tensors.
        swapped: Whether the gates are [2, F, D] or [2, D, F].
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
            "attn/q_einsum/w": _heads(attention["q"], 2),
            "attn/kv_einsum/w": np.stack([_heads(attention[name], 1) for name in "kv"]),
            "attn/attn_vec_einsum/w": np.stack([part.T for part in np.split(attention["o"], 2, axis=1)]),
            "mlp/gating_einsum": np.stack(gates if swapped else [gate.T for gate in gates]),
            "mlp/linear": ours["mlp.down_proj.weight"].T,
        } | {f"{name}/scale": ours[f"{their}_layernorm.weight"] for their, name in norms.items()}
        for name, value in stacked.items():
            layers.setdefault(f"params/llm/layers/{name}", []).append(value)
    for layer in range(_VISION["num_hidden_layers"]):
        for name, value in siglip(weights, _VISION["num_attention_heads"], layer).items():
            layers.setdefault(f"params/img/Transformer/encoderblock/{name}", []).append(value)
    arrays = {name: np.stack(values) for name, values in layers.items()}
    arrays |= {f"params/img/{name}": value for name, value in siglip_frame(weights).items()}
    arrays |= {
        "params/img/head/kernel": weights["multi_modal_projector.linear.weight"].T,
        "params/img/head/bias": weights["multi_modal_projector.linear.bias"],
        "params/llm/embedder/input_embedding": text["embed_tokens.weight"],
        "params/llm/final_norm/scale": text["norm.weight"],
    }
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}
