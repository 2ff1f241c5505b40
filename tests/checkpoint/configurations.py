"""Configurations of published decoders, as transformers reads them, and of unpublished ones."""

import copy
from dataclasses import replace
from typing import Any

import transformers

from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope
from gemwright.variants import GEMMA_2_2B, GEMMA_2B, GEMMA_3_270M, VARIANTS

LOCAL, GLOBAL = "sliding_attention", "full_attention"
DECODERS = ("Gemma 1", "CodeGemma", "Gemma 2", "Gemma 3")
CONFIGS = {n: replace(v.config, vision=None) for n, v in VARIANTS.items() if v.family in DECODERS}


def tensors_of(config: Config, rows: int | None = None) -> dict[str, TensorInfo]:
    table = TensorInfo((rows or config.vocab, config.width), "F32", 0, 0)
    return {"token_embd.weight": table} | ({} if config.tied else {"output.weight": table})


def with_mixers(config: Config, **changes: Any) -> Config:
    layers = tuple(replace(layer, mixer=replace(layer.mixer, **changes)) for layer in config.layers)
    return replace(config, layers=layers)


def transformers_config(data: dict[str, Any]) -> Any:
    """Return transformers' configuration object."""
    data = copy.deepcopy(data)  # the classes change their input
    return transformers.CONFIG_MAPPING[data["model_type"]].from_dict(data)


def as_transformers_reads(data: dict[str, Any]) -> Config:
    """Return the values of transformers' configuration object as its modeling files use them."""
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
        max_length=c.max_position_embeddings,
        final_soft_cap=None if gemma1 else c.final_logit_softcapping,
        tied=outer.tie_word_embeddings,
        norm_eps=c.rms_norm_eps,
    )


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
