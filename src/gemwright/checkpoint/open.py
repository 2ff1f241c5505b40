"""Open a checkpoint of any format: what it holds, without its weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gemwright.checkpoint.configs.gguf import from_gguf
from gemwright.checkpoint.configs.huggingface import from_huggingface, read_generation_config
from gemwright.checkpoint.files.gguf import GgufFile, open_gguf
from gemwright.checkpoint.files.npz import open_npz
from gemwright.checkpoint.files.safetensors import open_safetensors
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.names.flax import map_big_vision, map_deepmind
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.vocabulary import add_location_tokens
from gemwright.errors import CheckpointError
from gemwright.families import Family, find_family
from gemwright.model.config import Config
from gemwright.text.sentencepiece_model import CONTROL
from gemwright.text.vocabulary import Vocabulary
from gemwright.variants import VARIANTS

MAX_PADDING = 256
"""Rows that a table may have more than its tokenizer has tokens: releases have multiples of 64 or 128."""
MAX_JSON = 64_000_000
"""Bytes. The largest file of settings, a tokenizer, is half of it."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. Its weights are on disk until they are loaded.

    Attributes:
        path: The file or folder.
        format: Of the weights.
        file: Their names, shapes and bytes.
        config: The model, as the checkpoint itself describes it.
        mapping: Where each of our weights lies in the file.
        generation: What the checkpoint says of sampling, in the words of `generation_config.json`.
        chat_template: The template of conversations that came with it; None for a pretrained model.
    """

    path: Path
    format: Literal["safetensors", "gguf", "orbax", "npz"]
    file: TensorFile
    config: Config
    mapping: Mapping[str, TensorMapping]
    generation: Mapping[str, Any]
    chat_template: str | None

    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the tokenizer that lies in or beside the weights.

        Raises:
            CheckpointError: there is none, it is damaged, or it is another model's.
        """
        path = self.path if isinstance(self.file, GgufFile) else self._tokenizer_file()
        try:
            if not isinstance(self.file, GgufFile) and path.stat().st_size > MAX_JSON:
                raise CheckpointError("it is larger than any tokenizer; fetch it again.")
            if isinstance(self.file, GgufFile):
                vocabulary = Vocabulary.from_gguf(self.file.metadata)
            elif path.suffix == ".model":
                vocabulary = Vocabulary.from_sentencepiece(path)
            else:
                vocabulary = Vocabulary.from_tokenizer_json(path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path.") from error
        if self.family.added_pieces:
            vocabulary = add_location_tokens(vocabulary, self.config.vocab)
        self.check_vocabulary(vocabulary.size, lambda token: bool(vocabulary.kinds[token] == CONTROL), path)
        return vocabulary

    def check_vocabulary(self, size: int, is_control: Callable[[int], bool], path: Path) -> None:
        """Raise a `CheckpointError` if a vocabulary, read from `path`, is another model's."""
        # Markers may lie beyond the table, as Gemma 3's for images do in its text models; text may not.
        rows = self.config.vocab
        if abs(size - rows) > MAX_PADDING or not all(map(is_control, range(rows, size))):
            raise CheckpointError(
                f"{path} has {size} tokens where the model has {rows}; put the model's own tokenizer there."
            )

    def _tokenizer_file(self) -> Path:
        folder = self.path if self.path.is_dir() else self.path.parent
        for place in (folder, folder.parent) if self.format == "orbax" else (folder,):
            for name in ("tokenizer.model", "tokenizer.json"):
                if (place / name).is_file():
                    return place / name
        raise CheckpointError(f"{folder} has neither tokenizer.model nor tokenizer.json; put one beside the weights.")

    @property
    def family(self) -> Family:
        """Return the family of the model."""
        return find_family(self.config)

    @property
    def quantized(self) -> bool:
        """Whether it holds quantised tensors of ours, which stay as they are once loaded."""
        return any(info.panels for info in self.file.tensors.values())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that the checkpoint says end a text."""
        ids = self.generation.get("eos_token_id", ())
        return (ids,) if isinstance(ids, int) else tuple(ids)


def open_checkpoint(path: Path, variant: str | None = None) -> Checkpoint:
    """Open a GGUF or `.npz` file, a Hugging Face folder (or its safetensors file) or an Orbax folder.

    Args:
        path: The file or folder.
        variant: Name of the published variant; only an Orbax tree and an `.npz`, which do not describe themselves,
            need it.

    Raises:
        CheckpointError: nothing is there, it is no checkpoint, or it is damaged; nothing has been read but headers.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; give a file, a folder, a name from `gemwright models` or a hub id."
        )
    if path.is_dir():
        return _open_folder(path, variant)
    if path.suffix == ".gguf":
        return from_gguf_file(open_gguf(path))
    if path.suffix == ".safetensors":
        return _open_huggingface(path)
    if path.suffix == ".npz":
        return _open_npz(path, variant)
    raise CheckpointError(
        f"{path} is no checkpoint; give a .gguf, .safetensors or .npz file, or a folder that holds one."
    )


def _open_folder(folder: Path, variant: str | None) -> Checkpoint:
    if any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").exists():
        return _open_huggingface(folder)
    match sorted(folder.glob("*.gguf")):
        case [single]:
            return from_gguf_file(open_gguf(single))
        case [_, *_] as several:
            listed = ", ".join(file.name for file in several)
            raise CheckpointError(f"{folder} holds several GGUF files ({listed}); give the path of one.")
        case _:
            return _open_orbax(folder, variant)


def _open_huggingface(path: Path) -> Checkpoint:
    folder = path if path.is_dir() else path.parent
    settings = read_json(folder / "config.json")
    config = from_huggingface(settings, str(folder / "config.json"))
    # Older folders keep the end of text in config.json alone.
    end = {"eos_token_id": settings.get("eos_token_id")}
    generation = read_generation_config(end, str(folder / "config.json"))
    if (place := folder / "generation_config.json").is_file():
        generation |= read_generation_config(read_json(place), str(place))
    file = open_safetensors(path)
    mapping = map_huggingface(config)
    return Checkpoint(path, "safetensors", file, config, mapping, generation, _chat_template(folder))


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    settings = folder / "tokenizer_config.json"
    template = read_json(settings).get("chat_template") if settings.is_file() else None
    return template if isinstance(template, str) else None


def from_gguf_file(file: GgufFile) -> Checkpoint:
    """What `open_checkpoint` makes of a GGUF file that is open.

    Raises:
        CheckpointError: as there.
    """
    path = file.path
    parts = file.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(
            f"{path} is one of {parts} parts of a model; merge them with llama.cpp's `llama-gguf-split --merge` first."
        )
    config = from_gguf(file.metadata, file.tensors, str(path))
    mapping = map_gguf(config)
    stops = {int(file.metadata[key]) for key in _GGUF_STOPS if _is_id(file.metadata.get(key))}
    generation = {"eos_token_id": sorted(stops)} if stops else {}
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(path, "gguf", file, config, mapping, generation, template if isinstance(template, str) else None)


_GGUF_STOPS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _open_orbax(folder: Path, variant: str | None) -> Checkpoint:
    from gemwright.checkpoint.files.orbax import is_orbax, open_orbax

    if not is_orbax(folder):
        raise CheckpointError(f"{folder} holds no safetensors, GGUF or Orbax checkpoint; give a folder that does.")
    config = _variant(variant, "an Orbax tree", folder)
    file = open_orbax(folder)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    if not any(name.startswith("SigLiPFromPatches_0/") for name in shapes):
        config = replace(config, vision=None)  # trees are saved without the tower too
    return Checkpoint(folder, "orbax", file, config, map_deepmind(config, shapes), {}, None)


def _open_npz(path: Path, variant: str | None) -> Checkpoint:
    config = _variant(variant, "an .npz", path, family="PaliGemma")
    file = open_npz(path)
    mapping = map_big_vision(config, {name: info.shape for name, info in file.tensors.items()})
    return Checkpoint(path, "npz", file, config, mapping, {}, None)


def _variant(variant: str | None, what: str, where: Path, family: str = "") -> Config:
    """The model that a person names, for files which do not describe themselves."""
    known = [name for name, published in VARIANTS.items() if published.family.startswith(family)]
    if variant not in known:
        raise CheckpointError(
            f"{where} is {what}, which does not say what model it is; name it with --variant, "
            f"one of {', '.join(known)}."
        )
    return VARIANTS[variant].config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file.

    Raises:
        CheckpointError: it is missing, too large, not JSON or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} is larger than any such file can be; fetch it again.")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; fetch the whole folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); fetch it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; fetch it again.")
    return data
