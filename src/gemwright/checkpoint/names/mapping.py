"""Where each weight is in a file: the rows of the name tables, and how a file is checked against them."""

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


def check(mapping: Mapping[str, TensorMapping], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise unless the file holds exactly the tensors of the mapping, in their shapes.

    Args:
        mapping: Where each weight should lie.
        shapes: The file's tensors, by their plain names.
        where: The file, for messages.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; nothing has been read yet.
    """
    parts: dict[str, list[TensorMapping]] = {}
    for stored in mapping.values():
        parts.setdefault(plain_name(stored.name), []).append(stored)
    if missing := sorted(parts.keys() - shapes.keys()):
        raise CheckpointError(f"{where}: {_some(missing)} missing; the file is incomplete, fetch or convert it again.")
    sees = any(path.startswith("vision.") for path in mapping)
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


def _whole_shape(stacked: list[TensorMapping]) -> tuple[int, ...]:
    """The shape of a tensor by its parts: as many on each leading axis as their indices count."""
    return tuple(max(places) + 1 for places in zip(*(part.index for part in stacked), strict=True)) + stacked[0].shape


def matrix_shape(path: str, param: ParamSpec) -> tuple[int, ...]:
    """Our shape with the output axes merged into rows and the input axes into columns."""
    if len(param.shape) < 3 or not param.linear:
        return param.shape
    outputs = 1 if path.endswith(".o") else 2
    return math.prod(param.shape[:outputs]), math.prod(param.shape[outputs:])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:3]) + more
