"""Tensor names of GGUF files.

Sources: ggml-org/llama.cpp `conversion/gemma.py`, `tools/mtmd/clip.cpp`; ollama/ollama `convert/convert_gemma3.go`.
"""

from collections.abc import Mapping

from gemwright import tree
from gemwright.checkpoint.names.mapping import TensorMapping, matrix_shape, split
from gemwright.model.config import Config
from gemwright.model.params import ParamSpec, param_specs

LAYER = {
    "mixer_norm": "attn_norm",
    "mixer.q": "attn_q",
    "mixer.k": "attn_k",
    "mixer.v": "attn_v",
    "mixer.o": "attn_output",
    "mixer.q_norm": "attn_q_norm",
    "mixer.k_norm": "attn_k_norm",
    "mixer_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}
MODEL = {
    "embed": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
}


LLAMA_CPP_TOWER = {
    "vision.patch": "v.patch_embd",
    "vision.positions": "v.position_embd",
    "vision.mixer_norm": "v.blk.{}.ln1",
    "vision.q": "v.blk.{}.attn_q",
    "vision.k": "v.blk.{}.attn_k",
    "vision.v": "v.blk.{}.attn_v",
    "vision.o": "v.blk.{}.attn_out",
    "vision.mlp_norm": "v.blk.{}.ln2",
    "vision.up": "v.blk.{}.ffn_up",
    "vision.down": "v.blk.{}.ffn_down",
    "vision.final_norm": "v.post_ln",
    "vision.project": "mm.input_projection",
    "vision.project_norm": "mm.soft_emb_norm",
}
OLLAMA_TOWER = LLAMA_CPP_TOWER | {
    "vision.patch": "v.patch_embedding",
    "vision.positions": "v.position_embedding",
    "vision.mixer_norm": "v.blk.{}.layer_norm1",
    "vision.o": "v.blk.{}.attn_output",
    "vision.mlp_norm": "v.blk.{}.layer_norm2",
    "vision.up": "v.blk.{}.mlp.fc1",
    "vision.down": "v.blk.{}.mlp.fc2",
    "vision.final_norm": "v.post_layernorm",
    "vision.project": "mm.mm_input_projection",
    "vision.project_norm": "mm.mm_soft_emb_norm",
}
"""Names in Ollama's files, which hold the decoder and its tower."""
SWAPPED = {"vision.up": "vision.down", "vision.down": "vision.up"}

Shapes = Mapping[str, tuple[int, ...]]


def map_gguf(config: Config, shapes: Shapes | None = None) -> dict[str, TensorMapping]:
    """Map the path of each weight to its tensor in a GGUF file, for models that `to_gguf` can describe.

    Args:
        config: The model.
        shapes: Shapes of the file's tensors, which tell the names of a vision tower; None for those of llama.cpp.
    """

    def locate(path: str, param: ParamSpec) -> TensorMapping:
        if path.startswith("vision."):
            return _map_tower(config, path, param, shapes or {})
        layer, leaf = split(path)
        name = MODEL[leaf] if layer is None else f"blk.{layer}.{LAYER[leaf]}"
        offset = 1.0 if path.endswith("norm") else 0.0
        shape = matrix_shape(path, param)
        return TensorMapping(f"{name}.weight", shape, offset=offset, extra_rows=path in ("embed", "head"))

    return {path: locate(path, param) for path, param in tree.flatten(param_specs(config)).items()}


def _map_tower(config: Config, path: str, param: ParamSpec, shapes: Shapes) -> TensorMapping:
    assert config.vision is not None
    layer, leaf = split(path)
    leaf, kind = leaf.removesuffix("_bias"), "bias" if leaf.endswith("_bias") else "weight"
    names = OLLAMA_TOWER if f"{OLLAMA_TOWER['vision.patch']}.weight" in shapes else LLAMA_CPP_TOWER
    # Files of 2025 have the MLP's matrices under each other's name.
    up = f"{names['vision.up'].format(layer)}.weight"
    if leaf in SWAPPED and shapes.get(up) == (config.vision.width, config.vision.hidden) != shapes.get(up, ())[::-1]:
        leaf = SWAPPED[leaf]
    name = f"{names[leaf].format(layer)}.{kind}"
    if leaf == "vision.patch" and kind == "weight":
        return TensorMapping(name, (param.shape[0], 3, config.vision.patch, config.vision.patch))
    if leaf == "vision.project":  # the one matrix that is [inputs, outputs]
        return TensorMapping(name, param.shape[::-1], permute=(1, 0))
    return TensorMapping(name, matrix_shape(path, param), offset=1.0 if leaf == "vision.project_norm" else 0.0)
