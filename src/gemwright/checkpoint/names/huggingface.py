"""Tensor names of Hugging Face's files.

Nearly every matrix is [outputs, inputs] there, our own order with merged axes, so the tables have only names.
Source: huggingface/transformers `models/*gemma*/modeling_*.py` (5.23).
"""

from gemwright import tree
from gemwright.checkpoint.names.mapping import TensorMapping, matrix_shape, split
from gemwright.families import VAULTGEMMA, Family, find_family
from gemwright.model.config import Config
from gemwright.model.params import ParamSpec, param_specs

LAYER = {
    "mixer_norm": "input_layernorm",
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.o": "self_attn.o_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
    "mixer_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mlp_post_norm": "post_feedforward_layernorm",
}
MODEL = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}
RECURRENT = {
    "embed":               "model.embed_tokens",
    "final_norm":          "model.final_norm",
    "head":                "lm_head",
    "mixer_norm":          "temporal_pre_norm",
    "mixer.q":             "temporal_block.q_proj",
    "mixer.k":             "temporal_block.k_proj",
    "mixer.v":             "temporal_block.v_proj",
    "mixer.o":             "temporal_block.o_proj",
    "mixer.x":             "temporal_block.linear_x",
    "mixer.y":             "temporal_block.linear_y",
    "mixer.conv":          "temporal_block.conv_1d",
    "mixer.input_gate":    "temporal_block.rg_lru.input_gate_weight",
    "mixer.decay_gate":    "temporal_block.rg_lru.recurrent_gate_weight",
    "mixer.decay":         "temporal_block.rg_lru.recurrent_param",
    "mixer.out":           "temporal_block.linear_out",
    "mlp_norm":            "channel_pre_norm",
    "mlp.gate":            "mlp_block.gate_proj",
    "mlp.up":              "mlp_block.up_proj",
    "mlp.down":            "mlp_block.down_proj",
}  # fmt: skip
VISION = {
    "vision.patch":        "embeddings.patch_embedding",
    "vision.positions":    "embeddings.position_embedding",
    "vision.mixer_norm":   "encoder.layers.{}.layer_norm1",
    "vision.q":            "encoder.layers.{}.self_attn.q_proj",
    "vision.k":            "encoder.layers.{}.self_attn.k_proj",
    "vision.v":            "encoder.layers.{}.self_attn.v_proj",
    "vision.o":            "encoder.layers.{}.self_attn.out_proj",
    "vision.mlp_norm":     "encoder.layers.{}.layer_norm2",
    "vision.up":           "encoder.layers.{}.mlp.fc1",
    "vision.down":         "encoder.layers.{}.mlp.fc2",
    "vision.final_norm":   "post_layernorm",
}  # fmt: skip
PROJECTORS = {
    "affine": {"vision.project": "linear"},
    "normed": {"vision.project": "mm_input_projection_weight", "vision.project_norm": "mm_soft_emb_norm"},
}


SCORE = "score.weight"
"""The head of a reward model: [1, D]."""


def map_huggingface(config: Config) -> dict[str, TensorMapping]:
    """Map the path of each weight to its tensor in files of transformers."""
    family = find_family(config)

    def locate(path: str, param: ParamSpec) -> TensorMapping:
        name = _huggingface_name(config, family, path)
        _, leaf = split(path)
        if leaf == "mixer.conv":  # torch's depthwise convolution: [R, 1, taps]
            return TensorMapping(name, (param.shape[1], 1, param.shape[0]), permute=(2, 1, 0))
        if leaf == "vision.patch" and config.vision:
            return TensorMapping(name, (param.shape[0], 3, config.vision.patch, config.vision.patch))
        if name.endswith("mm_input_projection_weight"):  # the one matrix that is [inputs, outputs]
            return TensorMapping(name, param.shape[::-1], permute=(1, 0))
        return TensorMapping(name, matrix_shape(path, param), extra_rows=path in ("embed", "head"))

    return {path: locate(path, param) for path, param in tree.flatten(param_specs(config)).items()}


def _huggingface_name(config: Config, family: Family, path: str) -> str:
    layer, leaf = split(path)
    leaf, kind = leaf.removesuffix("_bias"), "bias" if leaf.endswith("_bias") else "weight"
    if config.vision and leaf in PROJECTORS[config.vision.projector]:
        name = f"multi_modal_projector.{PROJECTORS[config.vision.projector][leaf]}"
    elif leaf in VISION:
        name = f"vision_tower.vision_model.{VISION[leaf]}".format(layer)
    else:
        name = RECURRENT[leaf] if family.names == "recurrent" else (MODEL if layer is None else LAYER)[leaf]
        if layer is not None and not config.layers[layer].post_norms and family is not VAULTGEMMA:
            # Gemma 1's name of the norm before the MLP.
            name = name.replace("pre_feedforward_layernorm", "post_attention_layernorm")
        name = name if layer is None else f"model.layers.{layer}.{name}"
        name = f"language_model.{name}" if config.vision else name
    if name.endswith(("_weight", "_param")):  # parameters without a module
        return name.removesuffix("weight") + kind if kind == "bias" else name
    return f"{name}.{kind}"
