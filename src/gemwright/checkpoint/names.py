"""Where each weight lies in Hugging Face's and llama.cpp's files: tables, read one way to load and the other to write.

Both formats store nearly every matrix as [outputs, inputs], which is our own order with the axes merged, so the tables
are names alone. Sources: transformers' modeling files; llama.cpp `conversion/gemma.py`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from gemwright import tree
from gemwright.errors import CheckpointError
from gemwright.model.config import Config
from gemwright.model.spec import Param, spec


@dataclass(frozen=True)
class Stored:
    """One weight as a file holds it.

    Attributes:
        name: The tensor's name in the file.
        shape: Its shape in the file, of the part at `index` where several weights are stacked.
        index: Place on the leading axes where several weights are stacked in one tensor.
        permute: Order of the file's axes that gives ours, before any reshape.
        offset: What the file adds to the value (GGUF stores 1 + gain).
        extra_rows: Whether the file may hold more rows than the model (padding of the vocabulary).
    """

    name: str
    shape: tuple[int, ...]
    index: tuple[int, ...] = ()
    permute: tuple[int, ...] | None = None
    offset: float = 0.0
    extra_rows: bool = False

    def as_stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Our values in the order and shape of the file."""
        if self.permute is None:
            return values.reshape(self.shape)
        permuted = values.reshape([self.shape[axis] for axis in self.permute])
        return permuted.transpose([self.permute.index(axis) for axis in range(len(self.shape))])


# Ours                     Hugging Face                        GGUF
LAYER = {
    "mixer_norm":         ("input_layernorm",                  "attn_norm"),
    "mixer.q":            ("self_attn.q_proj",                 "attn_q"),
    "mixer.k":            ("self_attn.k_proj",                 "attn_k"),
    "mixer.v":            ("self_attn.v_proj",                 "attn_v"),
    "mixer.o":            ("self_attn.o_proj",                 "attn_output"),
    "mixer.q_norm":       ("self_attn.q_norm",                 "attn_q_norm"),
    "mixer.k_norm":       ("self_attn.k_norm",                 "attn_k_norm"),
    "mixer_post_norm":    ("post_attention_layernorm",         "post_attention_norm"),
    "mlp_norm":           ("pre_feedforward_layernorm",        "ffn_norm"),
    "mlp.gate":           ("mlp.gate_proj",                    "ffn_gate"),
    "mlp.up":             ("mlp.up_proj",                      "ffn_up"),
    "mlp.down":           ("mlp.down_proj",                    "ffn_down"),
    "mlp_post_norm":      ("post_feedforward_layernorm",       "post_ffw_norm"),
}  # fmt: skip
MODEL = {
    "embed":              ("model.embed_tokens",               "token_embd"),
    "final_norm":         ("model.norm",                       "output_norm"),
    "head":               ("lm_head",                          "output"),
}  # fmt: skip
RECURRENT = {  # Hugging Face's names in a RecurrentGemma
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
VISION = {  # Hugging Face's names of the tower, and of the two projectors
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


def huggingface(config: Config) -> dict[str, Stored]:
    """Name and shape of every weight as the hub's files have them, by our path."""
    recurrent = is_recurrent(config)

    def stored(path: str, param: Param) -> Stored:
        name = _huggingface_name(config, path, recurrent=recurrent)
        _, leaf = split(path)
        if leaf == "mixer.conv":  # torch's depthwise convolution: [R, 1, taps]
            return Stored(name, (param.shape[1], 1, param.shape[0]), permute=(2, 1, 0))
        if leaf == "vision.patch" and config.vision:
            return Stored(name, (param.shape[0], 3, config.vision.patch, config.vision.patch))
        if name.endswith("mm_input_projection_weight"):  # the one matrix that is [inputs, outputs]
            return Stored(name, param.shape[::-1], permute=(1, 0))
        return Stored(name, _matrix_shape(path, param), extra_rows=path in ("embed", "head"))

    return {path: stored(path, param) for path, param in tree.flatten(spec(config)).items()}


def gguf(config: Config) -> dict[str, Stored]:
    """Name and shape of every weight in the GGUF format, by our path; for what `to_gguf` can describe."""

    def stored(path: str, param: Param) -> Stored:
        layer, leaf = split(path)
        name = MODEL[leaf][1] if layer is None else f"blk.{layer}.{LAYER[leaf][1]}"
        offset = 1.0 if path.endswith("norm") else 0.0
        shape = _matrix_shape(path, param)
        return Stored(f"{name}.weight", shape, offset=offset, extra_rows=path in ("embed", "head"))

    return {path: stored(path, param) for path, param in tree.flatten(spec(config)).items()}


def _huggingface_name(config: Config, path: str, *, recurrent: bool) -> str:
    layer, leaf = split(path)
    leaf, kind = leaf.removesuffix("_bias"), "bias" if leaf.endswith("_bias") else "weight"
    if config.vision and leaf in PROJECTORS[config.vision.projector]:
        name = f"multi_modal_projector.{PROJECTORS[config.vision.projector][leaf]}"
    elif leaf in VISION:
        name = f"vision_tower.vision_model.{VISION[leaf]}".format(layer)
    else:
        name = RECURRENT[leaf] if recurrent else (MODEL if layer is None else LAYER)[leaf][0]
        if layer is not None and not config.layers[layer].post_norms:
            # The older layer calls the norm before its MLP by this name.
            name = name.replace("pre_feedforward_layernorm", "post_attention_layernorm")
        name = name if layer is None else f"model.layers.{layer}.{name}"
        name = f"language_model.{name}" if config.vision else name
    if name.endswith(("_weight", "_param")):  # parameters of no module of their own
        return name.removesuffix("weight") + kind if kind == "bias" else name
    return f"{name}.{kind}"


def is_recurrent(config: Config) -> bool:
    """Whether it is a RecurrentGemma, the one architecture whose MLPs have biases."""
    return any(layer.mlp.bias for layer in config.layers)


IGNORED = (
    r".*rotary_emb\.inv_freq",  # a buffer that older exports kept
    r"lm_head\.weight",  # a copy of a tied embedding
    r"vision_tower\.head\..*",  # a pooling head that no Gemma uses
    r"transformer/embedder/mm_(output_embedding|input_embedding_extra)(/w)?",
)
VISION_IGNORED = (
    r"(vision_tower|multi_modal_projector)\..*",
    r"SigLiPFromPatches_0/.*",
    r"transformer/embedder/mm_.*",
    r"(v|mm)\..*",  # in a GGUF that holds both
)
"""What a model without vision passes over in a file that has it."""
PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("model.lm_head.", "lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("vision_tower.vision_model.", "vision_tower."),
)
"""Prefixes that releases of transformers give to the same names in a multimodal file, and what stands for them here."""


def plain_name(name: str) -> str:
    """One name for a tensor, whatever prefixes the file gives it."""
    for prefix, plain in PREFIXES:
        if name.startswith(prefix):
            name = plain + name.removeprefix(prefix)
    return name


def check(plan: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise unless the file holds exactly the tensors of the plan, in their shapes.

    Args:
        plan: Where each weight should lie.
        shapes: The file's tensors, by their plain names.
        where: The file, for messages.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; nothing has been read yet.
    """
    parts: dict[str, list[Stored]] = {}
    for stored in plan.values():
        parts.setdefault(plain_name(stored.name), []).append(stored)
    if missing := sorted(parts.keys() - shapes.keys()):
        raise CheckpointError(f"{where}: {_some(missing)} missing; the file is incomplete, fetch or convert it again.")
    sees = any(path.startswith("vision.") for path in plan)
    known = re.compile("|".join(IGNORED if sees else IGNORED + VISION_IGNORED))
    if extra := sorted(name for name in shapes.keys() - parts.keys() if not known.fullmatch(name)):
        raise CheckpointError(
            f"{where}: {_some(extra)} not part of this model; its config does not describe this file."
        )
    for name, stacked in parts.items():
        found, needed = shapes[name], _whole_shape(stacked)
        more_rows = stacked[0].extra_rows and found[:1] > needed[:1] and found[1:] == needed[1:]
        if found != needed and not more_rows:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {list(found)} where the model needs {list(needed)}; "
                "its config does not describe this file."
            )


def split(path: str) -> tuple[int | None, str]:
    """`layers.3.mixer.q` -> (3, "mixer.q"), `vision.layers.3.q` -> (3, "vision.q"), `embed` -> (None, "embed")."""
    match = re.fullmatch(r"(vision\.)?layers\.(\d+)\.(.+)", path)
    return (int(match[2]), (match[1] or "") + match[3]) if match else (None, path)


def _whole_shape(stacked: list[Stored]) -> tuple[int, ...]:
    """The shape of a tensor by its parts: as many on each leading axis as their indices count."""
    return tuple(max(places) + 1 for places in zip(*(part.index for part in stacked), strict=True)) + stacked[0].shape


def _matrix_shape(path: str, param: Param) -> tuple[int, ...]:
    """Our shape with the output axes merged into rows and the input axes into columns."""
    if len(param.shape) < 3 or not param.linear:
        return param.shape
    outputs = 1 if path.endswith(".o") else 2
    return math.prod(param.shape[:outputs]), math.prod(param.shape[outputs:])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:3]) + more
