"""Find the weights in a file or folder: of a model, of one in a folder below, of a snapshot in the hub's cache."""

from pathlib import Path

from gemwright.checkpoint.files import formats
from gemwright.checkpoint.files.formats import (
    GGUF,
    HDF5,
    NPZ,
    PART,
    SAFETENSORS,
    Format,
    gguf_keys,
    is_gguf,
    list_files,
)
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.files.parts import find_parts
from gemwright.checkpoint.files.shards import is_adapter_file
from gemwright.checkpoint.gguf_model import is_tower
from gemwright.errors import CheckpointError

ORBAX = Format("an Orbax folder", "")
ADAPTER_CONFIG = "adapter_config.json"
"""Name of the file that describes a PEFT adapter."""
MAX_DEPTH = 2
"""Maximum number of folders between a given folder and the weights."""
MAX_FOLDERS = 64
"""Maximum number of folders that are searched in each folder."""

_ORBAX_FILES = ("_METADATA", "manifest.ocdbt", "checkpoint")
Found = tuple[Format, Path]


def find_weights(path: Path) -> Found:
    """Return the format and the place of the weights: a file, or a folder of safetensors or of an Orbax tree.

    Raises:
        CheckpointError: There are none, several, or only some in a format that is not supported.
    """
    if not path.is_dir():
        find_parts(path)  # refuses all but the first
        kind = formats.recognize(path)
        if kind is HDF5 and is_keras_preset(path.parent):
            return HDF5, path
        if kind is None or kind.remedy:
            raise formats.unsupported(path, kind)
        return kind, path
    path = _find_snapshot(path)
    match _search(path, MAX_DEPTH):
        case [found]:
            return found
        case []:
            raise _nothing_found(path)
        case several:
            listed = ", ".join(str(place.relative_to(path)) for _, place in several[:8])
            noun = "GGUF files" if all(kind is GGUF for kind, _ in several) else "models"
            raise CheckpointError(f"{path} holds several {noun} ({listed}); give the path of one.")


def is_keras_preset(folder: Path) -> bool:
    """Return whether a folder has the `config.json` of a Keras model."""
    config = folder / "config.json"
    return config.is_file() and "class_name" in read_json(config)


def adapter_base(path: Path) -> str | None:
    """Return the name of the base model of a LoRA adapter, a PEFT folder or a GGUF file; None for anything else.

    Raises:
        CheckpointError: The path or the description of the adapter cannot be read.
    """
    if is_adapter_file(path) and path.is_file():
        path = path.parent
    if path.is_dir():
        if not (path / ADAPTER_CONFIG).is_file() or _search(path, 0):
            return None
        base = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
        return base[:200] if isinstance(base, str) and base else "a model that it does not name"
    keys = gguf_keys(path) if is_gguf(path) else {}
    if keys.get("general.type") != "adapter":
        return None
    return keys.get("general.basename") or f"a {keys.get('general.architecture', 'Gemma')} model"


def _find_snapshot(folder: Path) -> Path:
    """Return the current snapshot of a repository's folder in the hub's cache, or any other folder as it is."""
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not snapshots.is_dir() or not ((folder / "blobs").is_dir() or main.is_file()):
        return folder
    if main.is_file() and main.stat().st_size < 100:
        current = snapshots / Path(main.read_text("utf-8", "replace").strip()).name
        return current if current.is_dir() else snapshots
    return snapshots


def _search(folder: Path, depth: int) -> list[Found]:
    """Return the weights in a folder; if there are none, those in the folders below."""
    files = list_files(folder)
    found = _weights(folder, files)
    if found or not depth:
        return found
    below = [place for place in files if place.is_dir() and not place.name.startswith(".")][:MAX_FOLDERS]
    return [found for place in below for found in _search(place, depth - 1)]


def _weights(folder: Path, files: list[Path]) -> list[Found]:
    """Return the weights in a folder: safetensors with a config, else GGUF files, else others."""
    safetensors = any(file.suffix.lower() == ".safetensors" and not is_adapter_file(file) for file in files)
    safetensors = safetensors or any(file.name.endswith(".safetensors.index.json") for file in files)
    ggufs = [] if safetensors and (folder / "config.json").is_file() else _ggufs(files)
    if ggufs:
        return [(GGUF, file) for file in ggufs]
    if safetensors:
        return [(SAFETENSORS, folder)]
    if any((folder / name).is_file() for name in _ORBAX_FILES):
        return [(ORBAX, folder)]
    arrays = [file for file in files if file.name.endswith(".weights.h5")]
    if arrays and is_keras_preset(folder):
        return [(HDF5, file) for file in arrays if formats.recognize(file) is HDF5]
    return [(NPZ, file) for file in files if file.suffix.lower() == ".npz"]


def _ggufs(files: list[Path]) -> list[Path]:
    """Return the GGUF files that are models, of split ones the first part; if there are none, the others."""
    ggufs = [file for file in files if is_gguf(file)]
    firsts: dict[str, Path] = {}
    for file in ggufs:
        firsts.setdefault(PART.sub(r"-of-\2", file.name), file)
    models = [file for file in firsts.values() if not is_tower(file) and adapter_base(file) is None]
    return models or list(firsts.values())


def _nothing_found(folder: Path) -> CheckpointError:
    """Return the error for a folder without supported weights, which names the unsupported ones."""
    weights = [file for file in list_files(folder) if file.is_file() and file.suffix.lower() not in formats.SETTINGS]
    for file in weights:
        if (kind := formats.recognize(file)) is not None and kind.remedy:
            return CheckpointError(f"{folder} holds no supported weights: {file.name} is {kind.name}; {kind.remedy}.")
    return CheckpointError(f"{folder} holds no safetensors, GGUF or Orbax checkpoint; give a folder that does.")
