"""Where each weight lies in each format: tables, read one way to load and the other way to write.

Hugging Face and GGUF store every matrix as [outputs, inputs], which is our own order with the axes merged, so those
tables are names alone. DeepMind's flax tree stacks some weights and orders the axes differently.
Sources: transformers' modeling files; llama.cpp `conversion/gemma.py`; google-deepmind/gemma `gm/ckpts/_checkpoint.py`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
        index: Place on the leading axis where several weights are stacked in one tensor.
        permute: Order of the file's axes that gives ours, before any reshape.
        offset: What the file adds to the value (GGUF stores 1 + gain).
        extra_rows: Whether the file may hold more rows than the model (padding of the vocabulary).
    """

    name: str
    shape: tuple[int, ...]
    index: int | None = None
    permute: tuple[int, ...] | None = None
    offset: float = 0.0
    extra_rows: bool = False


# Ours                              Hugging Face                                GGUF
LAYER = {
    "mixer_norm":                  ("input_layernorm",                          "attn_norm"),
    "mixer.q":                     ("self_attn.q_proj",                         "attn_q"),
    "mixer.k":                     ("self_attn.k_proj",                         "attn_k"),
    "mixer.v":                     ("self_attn.v_proj",                         "attn_v"),
    "mixer.o":                     ("self_attn.o_proj",                         "attn_output"),
    "mixer.q_norm":                ("self_attn.q_norm",                         "attn_q_norm"),
    "mixer.k_norm":                ("self_attn.k_norm",                         "attn_k_norm"),
    "mixer_post_norm":             ("post_attention_layernorm",                 "post_attention_norm"),
    "mlp_norm":                    ("pre_feedforward_layernorm",                "ffn_norm"),
    "mlp.gate":                    ("mlp.gate_proj",                            "ffn_gate"),
    "mlp.up":                      ("mlp.up_proj",                              "ffn_up"),
    "mlp.down":                    ("mlp.down_proj",                            "ffn_down"),
    "mlp_post_norm":               ("post_feedforward_layernorm",               "post_ffw_norm"),
}  # fmt: skip
MODEL = {
    "embed":                       ("model.embed_tokens",                       "token_embd"),
    "final_norm":                  ("model.norm",                               "output_norm"),
    "head":                        ("lm_head",                                  "output"),
}  # fmt: skip
FLAX = {  # name, index on the stacked axis, order of axes
    "embed":                       ("embedder/input_embedding",                 None, None),
    "final_norm":                  ("final_norm/scale",                         None, None),
    "mixer_norm":                  ("pre_attention_norm/scale",                 None, None),
    "mixer_post_norm":             ("post_attention_norm/scale",                None, None),
    "mlp_norm":                    ("pre_ffw_norm/scale",                       None, None),
    "mlp_post_norm":               ("post_ffw_norm/scale",                      None, None),
    "mixer.q":                     ("attn/q_einsum/w",                          None, (0, 2, 1)),
    "mixer.k":                     ("attn/kv_einsum/w",                         0,    (0, 2, 1)),
    "mixer.v":                     ("attn/kv_einsum/w",                         1,    (0, 2, 1)),
    "mixer.o":                     ("attn/attn_vec_einsum/w",                   None, (2, 0, 1)),
    "mixer.q_norm":                ("attn/_query_norm/scale",                   None, None),
    "mixer.k_norm":                ("attn/_key_norm/scale",                     None, None),
    "mlp.gate":                    ("mlp/gating_einsum/w",                      0,    (1, 0)),
    "mlp.up":                      ("mlp/gating_einsum/w",                      1,    (1, 0)),
    "mlp.down":                    ("mlp/linear/w",                             None, (1, 0)),
}  # fmt: skip
STACKED_QKV = {"mixer.q": 0, "mixer.k": 1, "mixer.v": 2}
"""Index of each in flax's `attn/qkv_einsum/w`, which replaces the two tensors where K = N."""


def huggingface(config: Config) -> dict[str, Stored]:
    """Name and shape of every weight in the Hugging Face format, by our path."""

    def stored(path: str, param: Param) -> Stored:
        name = _place(path, "model.layers.{}.{}.weight", "{}.weight", column=0)
        if not _has_post_norms(config, path):  # the older layer calls the norm before its MLP by this name
            name = name.replace("pre_feedforward_layernorm", "post_attention_layernorm")
        return Stored(name, _matrix_shape(path, param), extra_rows=path in ("embed", "head"))

    return {path: stored(path, param) for path, param in tree.flatten(spec(config)).items()}


def gguf(config: Config) -> dict[str, Stored]:
    """Name and shape of every weight in the GGUF format, by our path."""

    def stored(path: str, param: Param) -> Stored:
        name = _place(path, "blk.{}.{}.weight", "{}.weight", column=1)
        offset = 1.0 if path.endswith("norm") else 0.0
        return Stored(name, _matrix_shape(path, param), offset=offset, extra_rows=path in ("embed", "head"))

    return {path: stored(path, param) for path, param in tree.flatten(spec(config)).items()}


def flax(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
    """Name and place of every weight in DeepMind's flax tree, by our path.

    `shapes` are those of the file: releases differ in how they orient the MLP's gates, which is read off the shape.
    """

    def stored(path: str, param: Param) -> Stored:
        layer, leaf = _split(path)
        mixer = None if layer is None else config.layers[layer].mixer
        name, index, permute = FLAX[leaf]
        if leaf in STACKED_QKV and mixer is not None and mixer.heads == mixer.kv_heads:
            name, index = "attn/qkv_einsum/w", STACKED_QKV[leaf]
        name = f"transformer/{name}" if layer is None else f"transformer/layer_{layer}/{name}"
        if leaf in ("mlp.gate", "mlp.up") and shapes.get(name, ())[1:] == param.shape:
            permute = None
        shape = param.shape if permute is None else tuple(param.shape[permute.index(i)] for i in range(len(permute)))
        return Stored(name, shape, index, permute, extra_rows=leaf == "embed")

    return {path: stored(path, param) for path, param in tree.flatten(spec(config)).items()}


IGNORED = (
    r".*rotary_emb\.inv_freq",  # a buffer that older exports kept
    r"(language_model\.|model\.)?lm_head\.weight",  # a copy of a tied embedding
    r"(model\.)?(vision_tower|multi_modal_projector)\..*",  # the towers of a multimodal file
    r"SigLiPFromPatches_0/.*",
    r"transformer/embedder/mm_.*",
    r"(v|mm)\..*",  # the same in a GGUF that holds both
)
PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
"""Prefixes under which a multimodal file keeps the names of the text model."""


def text_name(name: str) -> str:
    """The plain name of a tensor of the text model, whatever prefix the file gives it."""
    for prefix, plain in PREFIXES:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def check(plan: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise unless the file holds exactly the tensors of the plan, in their shapes.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; nothing has been read yet.
    """
    wanted = {stored.name for stored in plan.values()}
    if missing := sorted(wanted - shapes.keys()):
        raise CheckpointError(f"{where}: {_some(missing)} missing; the file is incomplete, fetch or convert it again.")
    known = re.compile("|".join(IGNORED))
    if extra := sorted(name for name in shapes.keys() - wanted if not known.fullmatch(name)):
        raise CheckpointError(
            f"{where}: {_some(extra)} not part of this model; its config does not describe this file."
        )
    parts = Counter(stored.name for stored in plan.values())
    for stored in plan.values():
        found = shapes[stored.name]
        needed = stored.shape if stored.index is None else (parts[stored.name], *stored.shape)
        more_rows = stored.extra_rows and found[:1] > needed[:1] and found[1:] == needed[1:]
        if found != needed and not more_rows:
            raise CheckpointError(
                f"{where}: tensor {stored.name} has shape {list(found)} where the model needs {list(needed)}; "
                "its config does not describe this file."
            )


def _place(path: str, in_layer: str, outside: str, column: int) -> str:
    layer, leaf = _split(path)
    return outside.format(MODEL[leaf][column]) if layer is None else in_layer.format(layer, LAYER[leaf][column])


def _split(path: str) -> tuple[int | None, str]:
    """`layers.3.mixer.q` -> (3, "mixer.q"), `embed` -> (None, "embed")."""
    if not path.startswith("layers."):
        return None, path
    _, layer, leaf = path.split(".", 2)
    return int(layer), leaf


def _has_post_norms(config: Config, path: str) -> bool:
    layer, _ = _split(path)
    return layer is None or config.layers[layer].post_norms


def _matrix_shape(path: str, param: Param) -> tuple[int, ...]:
    """Our shape with the output axes merged into rows and the input axes into columns."""
    if len(param.shape) < 3:
        return param.shape
    outputs = 1 if path.endswith(".o") else 2
    return math.prod(param.shape[:outputs]), math.prod(param.shape[outputs:])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:3]) + more
