"""Tensor names of Google's own files: DeepMind's Flax trees, big_vision's PaliGemma arrays and Keras presets.

An entry has the tensor, the index of the weight in it if several are stacked, and the axes: "file -> ours" if the order
differs. Sources: google-deepmind/gemma `gm/ckpts/_checkpoint.py`; google-deepmind/recurrentgemma
`jax/modules.py`; google-research/big_vision `models/ppp/gemma.py`, `models/vit.py`; keras-team/keras-hub 0.32
`models/gemma/`, `models/gemma3/`.
"""

from collections.abc import Mapping
from typing import TypeAlias

from gemwright import tree
from gemwright.checkpoint.names.mapping import TensorMapping, split
from gemwright.families import find_family
from gemwright.model.config import Attention, Config, Recurrent
from gemwright.model.params import ParamSpec, param_specs

# V vocabulary, D width, N heads, K key heads, H head width, Q = N * H, J = K * H, F hidden width of the MLP,
# R recurrent width, W taps of its convolution, B blocks of its gates, G width of such a block; of the tower:
# C colors, X rows and Y columns of a patch, P patches, E width, S heads, T head width, M hidden width of the MLP.
Entry: TypeAlias = tuple[str, tuple[int, ...], str]

GEMMA: dict[str, Entry] = {
    "embed":                       ("embedder/input_embedding",                 (),   "VD"),
    "final_norm":                  ("final_norm/scale",                         (),   "D"),
    "mixer_norm":                  ("pre_attention_norm/scale",                 (),   "D"),
    "mixer_post_norm":             ("post_attention_norm/scale",                (),   "D"),
    "mlp_norm":                    ("pre_ffw_norm/scale",                       (),   "D"),
    "mlp_post_norm":               ("post_ffw_norm/scale",                      (),   "D"),
    "mixer.q":                     ("attn/q_einsum/w",                          (),   "NDH -> NHD"),
    "mixer.k":                     ("attn/kv_einsum/w",                         (0,), "KDH -> KHD"),
    "mixer.v":                     ("attn/kv_einsum/w",                         (1,), "KDH -> KHD"),
    "mixer.o":                     ("attn/attn_vec_einsum/w",                   (),   "NHD -> DNH"),
    "mixer.q_norm":                ("attn/_query_norm/scale",                   (),   "H"),
    "mixer.k_norm":                ("attn/_key_norm/scale",                     (),   "H"),
    "mlp.gate":                    ("mlp/gating_einsum/w",                      (0,), "DF -> FD"),
    "mlp.up":                      ("mlp/gating_einsum/w",                      (1,), "DF -> FD"),
    "mlp.down":                    ("mlp/linear/w",                             (),   "FD -> DF"),
    "vision.project":              ("embedder/mm_input_projection/w",           (),   "ED -> DE"),
    "vision.project_norm":         ("embedder/mm_soft_embedding_norm/scale",    (),   "E"),
}  # fmt: skip
STACKED_QKV = {"mixer.q": 0, "mixer.k": 1, "mixer.v": 2}
"""Index of each in `attn/qkv_einsum/w`, which replaces the two tensors if K = N."""
RECURRENT: dict[str, Entry] = {
    "embed":                       ("embedder/input_embedding",                 (),   "VD"),
    "final_norm":                  ("final_norm/scale",                         (),   "D"),
    "mixer_norm":                  ("temporal_pre_norm/scale",                  (),   "D"),
    "mlp_norm":                    ("channel_pre_norm/scale",                   (),   "D"),
    "mixer.q":                     ("attention_block/proj_q/kernel",            (),   "DQ -> QD"),
    "mixer.k":                     ("attention_block/proj_k/kernel",            (),   "DJ -> JD"),
    "mixer.v":                     ("attention_block/proj_v/kernel",            (),   "DJ -> JD"),
    "mixer.o":                     ("attention_block/proj_final/kernel",        (),   "QD -> DQ"),
    "mixer.o_bias":                ("attention_block/proj_final/bias",          (),   "D"),
    "mixer.x":                     ("recurrent_block/linear_x/kernel",          (),   "DR -> RD"),
    "mixer.x_bias":                ("recurrent_block/linear_x/bias",            (),   "R"),
    "mixer.y":                     ("recurrent_block/linear_y/kernel",          (),   "DR -> RD"),
    "mixer.y_bias":                ("recurrent_block/linear_y/bias",            (),   "R"),
    "mixer.conv":                  ("recurrent_block/conv_1d/w",                (),   "WR"),
    "mixer.conv_bias":             ("recurrent_block/conv_1d/b",                (),   "R"),
    "mixer.input_gate":            ("recurrent_block/rg_lru/input_gate/w",      (),   "BGG"),
    "mixer.input_gate_bias":       ("recurrent_block/rg_lru/input_gate/b",      (),   "BG"),
    "mixer.decay_gate":            ("recurrent_block/rg_lru/a_gate/w",          (),   "BGG"),
    "mixer.decay_gate_bias":       ("recurrent_block/rg_lru/a_gate/b",          (),   "BG"),
    "mixer.decay":                 ("recurrent_block/rg_lru/a_param",           (),   "R"),
    "mixer.out":                   ("recurrent_block/linear_out/kernel",        (),   "RD -> DR"),
    "mixer.out_bias":              ("recurrent_block/linear_out/bias",          (),   "D"),
    "mlp.gate":                    ("mlp_block/ffw_up/w",                       (0,), "DF -> FD"),
    "mlp.gate_bias":               ("mlp_block/ffw_up/b",                       (0,), "11F"),
    "mlp.up":                      ("mlp_block/ffw_up/w",                       (1,), "DF -> FD"),
    "mlp.up_bias":                 ("mlp_block/ffw_up/b",                       (1,), "11F"),
    "mlp.down":                    ("mlp_block/ffw_down/kernel",                (),   "FD -> DF"),
    "mlp.down_bias":               ("mlp_block/ffw_down/bias",                  (),   "D"),
}  # fmt: skip
TOWER: dict[str, Entry] = {
    "vision.patch":                ("embedding/kernel",                                 (), "XYCE -> ECXY"),
    "vision.patch_bias":           ("embedding/bias",                                   (), "E"),
    "vision.positions":            ("pos_embedding",                                    (), "1PE"),
    "vision.mixer_norm":           ("LayerNorm_0/scale",                                (), "E"),
    "vision.mixer_norm_bias":      ("LayerNorm_0/bias",                                 (), "E"),
    "vision.q":                    ("MultiHeadDotProductAttention_0/query/kernel",      (), "EST -> STE"),
    "vision.q_bias":               ("MultiHeadDotProductAttention_0/query/bias",        (), "ST"),
    "vision.k":                    ("MultiHeadDotProductAttention_0/key/kernel",        (), "EST -> STE"),
    "vision.k_bias":               ("MultiHeadDotProductAttention_0/key/bias",          (), "ST"),
    "vision.v":                    ("MultiHeadDotProductAttention_0/value/kernel",      (), "EST -> STE"),
    "vision.v_bias":               ("MultiHeadDotProductAttention_0/value/bias",        (), "ST"),
    "vision.o":                    ("MultiHeadDotProductAttention_0/out/kernel",        (), "STE -> EST"),
    "vision.o_bias":               ("MultiHeadDotProductAttention_0/out/bias",          (), "E"),
    "vision.mlp_norm":             ("LayerNorm_1/scale",                                (), "E"),
    "vision.mlp_norm_bias":        ("LayerNorm_1/bias",                                 (), "E"),
    "vision.up":                   ("MlpBlock_0/Dense_0/kernel",                        (), "EM -> ME"),
    "vision.up_bias":              ("MlpBlock_0/Dense_0/bias",                          (), "M"),
    "vision.down":                 ("MlpBlock_0/Dense_1/kernel",                        (), "ME -> EM"),
    "vision.down_bias":            ("MlpBlock_0/Dense_1/bias",                          (), "E"),
    "vision.final_norm":           ("Transformer/encoder_norm/scale",                   (), "E"),
    "vision.final_norm_bias":      ("Transformer/encoder_norm/bias",                    (), "E"),
}  # fmt: skip
BIG_VISION_HEAD: dict[str, Entry] = {
    "vision.project":              ("head/kernel",                              (),   "ED -> DE"),
    "vision.project_bias":         ("head/bias",                                (),   "D"),
}  # fmt: skip
KERAS: dict[str, Entry] = {
    "embed":                       ("reversible_embedding",                     (),   "VD"),
    "final_norm":                  ("rms_normalization",                        (),   "D"),
    "mixer_norm":                  ("pre_attention_norm",                       (),   "D"),
    "mixer_post_norm":             ("post_attention_norm",                      (),   "D"),
    "mlp_norm":                    ("pre_ffw_norm",                             (),   "D"),
    "mlp_post_norm":               ("post_ffw_norm",                            (),   "D"),
    "mixer.q":                     ("attention/query_dense",                    (),   "NDH -> NHD"),
    "mixer.k":                     ("attention/key_dense",                      (),   "KDH -> KHD"),
    "mixer.v":                     ("attention/value_dense",                    (),   "KDH -> KHD"),
    "mixer.o":                     ("attention/output_dense",                   (),   "NHD -> DNH"),
    "mixer.q_norm":                ("attention/query_norm",                     (),   "H"),
    "mixer.k_norm":                ("attention/key_norm",                       (),   "H"),
    "mlp.gate":                    ("gating_ffw",                               (),   "DF -> FD"),
    "mlp.up":                      ("gating_ffw_2",                             (),   "DF -> FD"),
    "mlp.down":                    ("ffw_linear",                               (),   "FD -> DF"),
}  # fmt: skip

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def map_deepmind(config: Config, shapes: Shapes) -> dict[str, TensorMapping]:
    """Map the path of each weight to its tensor in DeepMind's trees.

    Args:
        config: The model.
        shapes: Shapes of the tensors in the file, which show the order of the axes of MLP gates: releases differ.
    """
    table, block = (RECURRENT, "blocks.{}") if find_family(config).names == "recurrent" else (GEMMA, "layer_{}")

    def locate(path: str, param: ParamSpec) -> TensorMapping:
        layer, leaf = split(path)
        if leaf in TOWER:
            name, index, axes = TOWER[leaf]
            name = name if layer is None else f"Transformer/encoderblock_{layer}/{name}"
            name = f"SigLiPFromPatches_0/siglip_encoder/{name}"
        else:
            name, index, axes = table[leaf]
            if leaf in STACKED_QKV and table is GEMMA and layer is not None and _has_full_heads(config, layer):
                name, index = "attn/qkv_einsum/w", (STACKED_QKV[leaf],)
            name = f"transformer/{name}" if layer is None else f"transformer/{block.format(layer)}/{name}"
        return _stored(config, path, param, (name, index, axes), shapes)

    return {path: locate(path, param) for path, param in tree.flatten(param_specs(config)).items()}


def map_big_vision(config: Config, shapes: Shapes) -> dict[str, TensorMapping]:
    """Map the path of each weight to its tensor in big_vision's arrays, which stack layers on the first axis.

    Arguments are those of `map_deepmind`.
    """

    def locate(path: str, param: ParamSpec) -> TensorMapping:
        layer, leaf = split(path)
        tower = leaf.startswith("vision.")
        name, index, axes = (TOWER | BIG_VISION_HEAD if tower else GEMMA)[leaf]
        name = name.removesuffix("/w") if leaf.startswith("mlp.") else name
        if layer is not None:
            name, index = f"{'Transformer/encoderblock' if tower else 'layers'}/{name}", (layer, *index)
        return _stored(config, path, param, (f"params/{'img' if tower else 'llm'}/{name}", index, axes), shapes)

    return {path: locate(path, param) for path, param in tree.flatten(param_specs(config)).items()}


def map_keras(config: Config, shapes: Shapes) -> dict[str, TensorMapping]:
    """Map the path of each weight to its array in the `model.weights.h5` of a Keras preset.

    Arguments are those of `map_deepmind`; the shapes show the names of the decoder's blocks.
    """
    block = (
        "gemma3_decoder_block" if any("/gemma3_decoder_block/" in name for name in shapes) else "gemma_decoder_block"
    )

    def locate(path: str, param: ParamSpec) -> TensorMapping:
        layer, leaf = split(path)
        name, index, axes = KERAS[leaf]
        if layer is not None:
            name = f"{block}_{layer}/{name}" if layer else f"{block}/{name}"
        return _stored(config, path, param, (f"layers/{name}/vars/0", index, axes), shapes)

    return {path: locate(path, param) for path, param in tree.flatten(param_specs(config)).items()}


def _stored(config: Config, path: str, param: ParamSpec, entry: Entry, shapes: Shapes) -> TensorMapping:
    name, index, axes = entry
    layer, leaf = split(path)
    if leaf in ("mlp.gate", "mlp.up") and shapes.get(name, ())[len(index) :] == param.shape:
        axes = "FD"
    stored, _, ours = axes.partition(" -> ")
    sizes = _sizes(config, layer, leaf)
    permute = tuple(stored.index(axis) for axis in ours) or None
    return TensorMapping(name, tuple(sizes[axis] for axis in stored), index, permute, extra_rows=leaf == "embed")


def _sizes(config: Config, layer: int | None, leaf: str) -> dict[str, int]:
    """Return the length of each axis that an entry may have."""
    sizes = {"1": 1, "C": 3, "V": config.vocab, "D": config.width}
    if config.vision and leaf.startswith("vision."):
        v = config.vision
        tower = {"X": v.patch, "Y": v.patch, "P": v.grid**2, "E": v.width, "S": v.heads, "T": v.width // v.heads}
        return sizes | tower | {"M": v.hidden}
    if layer is None:
        return sizes
    sizes["F"] = config.layers[layer].mlp.hidden
    match config.layers[layer].mixer:
        case Attention(heads, kv_heads, head_dim):
            heads = {"N": heads, "K": kv_heads, "H": head_dim, "Q": heads * head_dim, "J": kv_heads * head_dim}
            return sizes | heads
        case Recurrent(width, blocks, conv_width):
            return sizes | {"R": width, "B": blocks, "G": width // blocks, "W": conv_width}


def _has_full_heads(config: Config, layer: int) -> bool:
    mixer = config.layers[layer].mixer
    return isinstance(mixer, Attention) and mixer.heads == mixer.kv_heads
