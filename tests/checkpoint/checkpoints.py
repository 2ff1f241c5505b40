"""Small random models, written by transformers and by Orbax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny import tiny_vocabulary
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
)

VOCAB = tiny_vocabulary().size
KINDS = ("gemma", "gemma, full heads", "gemma2", "gemma3_text")
TEXT = "The man and the thing, in QED, x\u00e9y  zz"

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}


def model(kind: str, dtype: torch.dtype = torch.float32, layers: int = 2) -> PreTrainedModel:
    """A model with weights so large that each of them matters, and norms' gains from -0.5 to 1."""
    torch.manual_seed(0)
    kv_heads = 2 if kind == "gemma, full heads" else 1
    sizes = _SIZES | {"num_hidden_layers": layers, "num_key_value_heads": kv_heads}
    match kind:
        case "gemma2":
            made: PreTrainedModel = Gemma2ForCausalLM(Gemma2Config(query_pre_attn_scalar=32, sliding_window=8, **sizes))
        case "gemma3_text":
            made = Gemma3ForCausalLM(Gemma3TextConfig(query_pre_attn_scalar=32, sliding_window=8, **sizes))
        case _:
            made = GemmaForCausalLM(GemmaConfig(**sizes))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(0.0, 0.15)
            if name.endswith("norm.weight"):
                parameter.mul_(2).clamp_(-0.5, 1.0)
    return made.to(dtype).eval()


def huggingface(folder: Path, kind: str = "gemma3_text", dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    """The model of `kind` as transformers saves it, with a tokenizer."""
    model(kind, dtype).save_pretrained(folder, **save)
    (folder / "tokenizer.model").write_bytes(tiny_vocabulary().sentencepiece_model())
    return folder


def flax(
    weights: Mapping[str, NDArray[Any]], heads: int, kv_heads: int, *, swapped: bool, padding: int = 0
) -> dict[str, Any]:
    """The tree of DeepMind's releases, made from Hugging Face's tensors.

    Args:
        weights: Those tensors.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        swapped: Whether the gates are [2, F, D], as in later releases, or [2, D, F].
        padding: Rows of zeros after the vocabulary.
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

        def projection(name: str, count: int, their: str = their) -> NDArray[Any]:
            rows = weights[f"{their}.self_attn.{name}_proj.weight"]
            return np.stack([head.T for head in np.split(rows, count)])  # [count, D, H]

        q, k, v = projection("q", heads), projection("k", kv_heads), projection("v", kv_heads)
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
