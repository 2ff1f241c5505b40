"""The tensor of each weight in a file, and the check of a file against such a mapping."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from gemwright.errors import CheckpointError
from gemwright.model.params import ParamSpec


@dataclass(frozen=True)
class TensorMapping:
    """The tensor of one weight in a file.

    Attributes:
        name: Name of the tensor.
        shape: Shape of the tensor, or of its part at `index` if several weights are stacked.
        index: Index of the weight on the leading axes if several are stacked.
        permute: Order of the file's axes that gives ours, before any reshape.
        offset: Number that the file adds to the values (GGUF stores 1 + gain).
        extra_rows: Whether the tensor may have more rows than the model (padding of the vocabulary).
    """

    name: str
    shape: tuple[int, ...]
    index: tuple[int, ...] = ()
    permute: tuple[int, ...] | None = None
    offset: float = 0.0
    extra_rows: bool = False

    def as_stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return our values with the axes and the shape of the file."""
        if self.permute is None:
            return values.reshape(self.shape)
        permuted = values.reshape([self.shape[axis] for axis in self.permute])
        return permuted.transpose([self.permute.index(axis) for axis in range(len(self.shape))])


IGNORED = (
    r".*rotary_emb\.inv_freq",  # a buffer in older exports
    r"lm_head\.weight",  # a copy of a tied embedding
    r"score\.weight",  # the head of a reward model, which is not opened as a model that generates text
    r"rope_freqs\.weight",  # factors of the rotary embedding, which llama.cpp ignores for Gemma 1 to 3
    r"vision_tower\.head\..*",  # a pooling head, unused by Gemma
    r"transformer/embedder/mm_(output_embedding|input_embedding_extra)(/w)?",
)
VISION_IGNORED = (
    r"(vision_tower|multi_modal_projector)\..*",
    r"SigLiPFromPatches_0/.*",
    r"transformer/embedder/mm_.*",
    r"(v|mm)\..*",  # in a GGUF with both
)
"""Tensors of a vision tower, ignored by a model without one."""
_DECODER = ("embed_tokens.", "layers.", "norm.", "final_norm.")
_WRAPPERS = re.compile(
    r"(?:(?:model|module|base_model|language_model|text_model|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
    r"\.)+(?=embed_tokens\.|layers\.\d|norm\.|final_norm\.|lm_head\.|vision_tower\.|vision_model\.|multi_modal_projector\.)"
)
"""Modules around a model in multimodal files, in different releases of transformers, and in those of trainers."""


def plain_name(name: str) -> str:
    """Return the name of a tensor without the modules around the model: `model.` of a decoder, `vision_tower.`."""
    match = _WRAPPERS.match(name)
    rest = name[match.end() :] if match else name
    if rest.startswith(_DECODER):
        return f"model.{rest}"
    for prefix in ("vision_tower.vision_model.", "vision_model."):
        if rest.startswith(prefix):
            return "vision_tower." + rest.removeprefix(prefix)
    return rest


def has_tower(names: Iterable[str]) -> bool:
    """Return whether the tensors of transformers' files include a vision tower."""
    return any(plain_name(name).startswith("vision_tower.") for name in names)


def check(mapping: Mapping[str, TensorMapping], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Check that a file has exactly the tensors of a mapping, with their shapes.

    Args:
        mapping: The tensor of each weight.
        shapes: Shapes of the file's tensors by plain name.
        where: The file, for error messages.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape; no values have been read.
    """
    parts: dict[str, list[TensorMapping]] = {}
    for tensor in mapping.values():
        parts.setdefault(plain_name(tensor.name), []).append(tensor)
    if missing := sorted(parts.keys() - shapes.keys()):
        raise CheckpointError(
            f"{where}: {_some(missing)} missing; the file is incomplete; download or convert it again."
        )
    has_vision = any(path.startswith("vision.") for path in mapping)
    known = re.compile("|".join(IGNORED if has_vision else IGNORED + VISION_IGNORED))
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
    """Split a path into layer and leaf.

    `layers.3.mixer.q` -> (3, "mixer.q"), `vision.layers.3.q` -> (3, "vision.q"), `embed` -> (None, "embed").
    """
    match = re.fullmatch(r"(vision\.)?layers\.(\d+)\.(.+)", path)
    return (int(match[2]), (match[1] or "") + match[3]) if match else (None, path)


def _whole_shape(stacked: list[TensorMapping]) -> tuple[int, ...]:
    """Return the shape of a tensor of stacked weights, whose indices give the size of each leading axis."""
    return tuple(max(indices) + 1 for indices in zip(*(part.index for part in stacked), strict=True)) + stacked[0].shape


def matrix_shape(path: str, param: ParamSpec) -> tuple[int, ...]:
    """Return our shape with output axes merged into rows and input axes into columns."""
    if len(param.shape) < 3 or not param.linear:
        return param.shape
    outputs = 1 if path.endswith(".o") else 2
    return math.prod(param.shape[:outputs]), math.prod(param.shape[outputs:])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:3]) + more
