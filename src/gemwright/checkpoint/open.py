"""Open a checkpoint of any format: its config and the names, shapes and places of its tensors."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemwright.checkpoint.chat_templates import (
    SPECIAL_TOKENS,
    gguf_chat_templates,
    gguf_generation,
    gguf_special_tokens,
    read_chat_templates,
    read_special_tokens,
)
from gemwright.checkpoint.configs.gguf import from_gguf
from gemwright.checkpoint.configs.huggingface import from_huggingface, read_generation_config
from gemwright.checkpoint.dequantize.file import dequantize
from gemwright.checkpoint.files.formats import GGUF, HDF5, NPZ, SAFETENSORS
from gemwright.checkpoint.files.gguf import GgufFile
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.files.npz import open_npz
from gemwright.checkpoint.files.safetensors import open_safetensors
from gemwright.checkpoint.files.shards import SHARD
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.find import adapter_base, find_weights
from gemwright.checkpoint.gguf_model import open_gguf_model
from gemwright.checkpoint.names.flax import map_big_vision, map_deepmind, map_keras
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping, has_tower, plain_name
from gemwright.checkpoint.vocabulary import check_vocabulary, load_vocabulary
from gemwright.errors import CheckpointError
from gemwright.families import GEMMA_3, Family, find_family
from gemwright.model.config import Config
from gemwright.text.vocabulary import Vocabulary
from gemwright.variants import VARIANTS

_LOG = logging.getLogger(__name__)
_COMPARED = 1 << 22
"""Number of bytes of two tensors that are compared at a time."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, whose weights are on disk until they are loaded.

    Attributes:
        path: The file or folder.
        format: Format of the weights.
        file: Names, shapes and bytes of the tensors.
        config: The model that the checkpoint describes.
        mapping: The tensor of each of our weights.
        generation: The checkpoint's sampling settings, with the keys of `generation_config.json`.
        chat_template: The usual chat template; None for a pretrained model.
        chat_templates: All chat templates by name.
        special_tokens: Names of special tokens, by their variables in templates, such as `bos_token`.
        tokenizer: Folder of the tokenizer; None if it is that of the checkpoint.
    """

    path: Path
    format: Literal["safetensors", "gguf", "orbax", "npz", "keras"]
    file: TensorFile
    config: Config
    mapping: Mapping[str, TensorMapping]
    generation: Mapping[str, Any]
    chat_template: str | None
    chat_templates: Mapping[str, str] = field(default_factory=dict[str, str])
    special_tokens: Mapping[str, str] = field(default_factory=lambda: dict(SPECIAL_TOKENS))
    tokenizer: Path | None = None

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {self.family.name}, {self.format})"

    def vocabulary(self) -> Vocabulary:
        """Load the vocabulary of the checkpoint's tokenizer.

        Raises:
            CheckpointError: The tokenizer is missing, damaged, or that of another model.
        """
        return load_vocabulary(self.tokenizer or self.path, self.file, self.config)

    def check_vocabulary(self, size: int, is_control: Callable[[int], bool], path: Path) -> None:
        """Check that a vocabulary read from `path` fits the model.

        Raises:
            CheckpointError: The vocabulary is that of another model.
        """
        check_vocabulary(self.config, size, is_control, path)

    @property
    def family(self) -> Family:
        """Return the family of the model."""
        return find_family(self.config)

    @property
    def quantized(self) -> bool:
        """Whether the file holds quantized tensors of ours, which stay in their stored format when loaded."""
        return any(info.panels for info in self.file.tensors.values())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text, as the checkpoint gives them."""
        ids = self.generation.get("eos_token_id", ())
        return (ids,) if isinstance(ids, int) else tuple(ids)


def open_checkpoint(path: Path, variant: str | None = None, *, reward: bool = False) -> Checkpoint:
    """Open a GGUF or `.npz` file, a Hugging Face folder (or its safetensors file), an Orbax folder or a Keras preset.

    Args:
        path: The file or folder.
        variant: Name of the published variant, for an Orbax tree or an `.npz`, which have no config; else it has to
            agree with the checkpoint.
        reward: Whether a reward model in a Hugging Face folder is wanted.

    Raises:
        CheckpointError: The path is missing, not a checkpoint, damaged, or of another variant; only headers are read.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; give a file, a folder, a name from `gemwright models` or a hub id."
        )
    _refuse_adapter(path)
    kind, place = find_weights(path)
    if reward and kind is not SAFETENSORS:
        raise CheckpointError(f"{path} is no reward model, which is a Hugging Face folder or an adapter.")
    if kind is GGUF:
        opened = open_gguf_checkpoint(open_gguf_model(place))
    elif kind is SAFETENSORS:
        opened = _open_huggingface(place, reward)
    elif kind is HDF5:
        opened = _open_keras(place)
    else:
        return _open_npz(place, variant) if kind is NPZ else _open_orbax(place, variant)
    check_variant(opened, variant)
    return opened


def _refuse_adapter(path: Path) -> None:
    if (base := adapter_base(path)) is not None:
        raise CheckpointError(f"{path} is an adapter for {base}, not a whole model; give the model that it adapts.")


def _open_huggingface(path: Path, reward: bool) -> Checkpoint:
    folder = path if path.is_dir() else path.parent
    path = folder if SHARD.search(path.name) else path
    settings = read_json(folder / "config.json")
    config = from_huggingface(settings, str(folder / "config.json"), reward=reward)
    # Older folders have the stop tokens in config.json only.
    end = {"eos_token_id": settings.get("eos_token_id")}
    generation = read_generation_config(end, str(folder / "config.json"))
    if (file := folder / "generation_config.json").is_file():
        generation |= read_generation_config(read_json(file), str(file))
    file = dequantize(open_safetensors(path), settings, str(folder / "config.json"))
    if find_family(config) is GEMMA_3 and not has_tower(file.tensors):
        config = replace(config, vision=None)  # merges of the text half keep the tower's config
    config = _untie(config, file, folder)
    mapping, templates = map_huggingface(config), read_chat_templates(folder)
    return Checkpoint(
        path,
        "safetensors",
        file,
        config,
        mapping,
        generation,
        templates.get("default"),
        templates,
        read_special_tokens(folder),
    )


def _untie(config: Config, file: TensorFile, folder: Path) -> Config:
    """Return a config without tying if the file has another head than the embedding, as after training both."""
    names = {plain_name(name): name for name in file.tensors}
    head, table = names.get("lm_head.weight"), names.get("model.embed_tokens.weight")
    if not config.tied or head is None or table is None or _equal(file, head, table):
        return config
    _LOG.warning(
        "%s: lm_head.weight differs from embed_tokens.weight, so the head is not tied, although config.json says so.",
        folder,
    )
    return replace(config, tied=False)


def _equal(file: TensorFile, first: str, second: str) -> bool:
    """Return whether two tensors are stored with the same bytes. Only a copy is read to its end."""
    if replace(file.tensors[first], offset=0) != replace(file.tensors[second], offset=0):
        return False
    bytes_of_first, bytes_of_second = file.raw(first), file.raw(second)
    starts = range(0, len(bytes_of_first), _COMPARED)
    return all(
        np.array_equal(bytes_of_first[at : at + _COMPARED], bytes_of_second[at : at + _COMPARED]) for at in starts
    )


def open_gguf_checkpoint(file: GgufFile) -> Checkpoint:
    """Return the checkpoint of an open GGUF file.

    Raises:
        CheckpointError: The file does not hold a whole Gemma model.
    """
    path = file.path
    if file.text("general.type") == "adapter":
        _refuse_adapter(path)
    config = from_gguf(file.metadata, file.tensors, str(path))
    mapping = map_gguf(config, {name: info.shape for name, info in file.tensors.items()})
    templates = gguf_chat_templates(file.metadata)
    return Checkpoint(
        path,
        "gguf",
        file,
        config,
        mapping,
        gguf_generation(file.metadata),
        templates.get("default"),
        templates,
        gguf_special_tokens(file.metadata),
    )


def _open_keras(path: Path) -> Checkpoint:
    from gemwright.checkpoint.configs.keras import from_keras
    from gemwright.checkpoint.files.hdf5 import open_hdf5

    where = path.with_name("config.json")
    config, file = from_keras(read_json(where), str(where)), open_hdf5(path)
    mapping = map_keras(config, {name: info.shape for name, info in file.tensors.items()})
    return Checkpoint(path, "keras", file, config, mapping, {}, None)


def _open_orbax(folder: Path, variant: str | None) -> Checkpoint:
    from gemwright.checkpoint.files.orbax import open_orbax

    config = _find_variant(folder, "an Orbax tree", variant)
    file = open_orbax(folder)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    if not any(name.startswith("SigLiPFromPatches_0/") for name in shapes):
        config = replace(config, vision=None)  # some trees are saved without the vision tower
    return Checkpoint(folder, "orbax", file, config, map_deepmind(config, shapes), {}, None)


def _open_npz(path: Path, variant: str | None) -> Checkpoint:
    file = open_npz(path)
    if any(name.startswith(("model.", "layers.")) for name in file.tensors):
        raise CheckpointError(f"{path} is an .npz file of MLX; use the model's safetensors folder or a GGUF file.")
    config = _find_variant(path, "an .npz", variant, family="PaliGemma")
    mapping = map_big_vision(config, {name: info.shape for name, info in file.tensors.items()})
    return Checkpoint(path, "npz", file, config, mapping, {}, None)


def check_variant(checkpoint: Checkpoint, variant: str | None) -> None:
    """Check that a checkpoint that describes itself is of a variant, if one is given.

    Raises:
        CheckpointError: There is no such variant, or the checkpoint has another family, width or number of layers.
    """
    if variant is None:
        return
    if variant not in VARIANTS:
        raise CheckpointError(f"There is no variant {variant!r:.80}; choose one of {', '.join(VARIANTS)}.")
    published, config = VARIANTS[variant].config, checkpoint.config
    if _describe(published) != _describe(config):
        raise CheckpointError(
            f"{checkpoint.path} is {_describe(config)}, and {variant} is {_describe(published)}; leave out the variant."
        )


def _describe(config: Config) -> str:
    return f"a {find_family(config).name} with {len(config.layers)} layers of width {config.width}"


def _find_variant(path: Path, kind: str, variant: str | None, family: str = "") -> Config:
    """Return the config of a named variant, for formats without a config."""
    known = [name for name, published in VARIANTS.items() if published.family.startswith(family)]
    if variant not in known:
        raise CheckpointError(
            f"{path} is {kind}, which has no config; name its model with --variant, one of {', '.join(known)}."
        )
    return VARIANTS[variant].config
