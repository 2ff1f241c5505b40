"""GGUF models of several files: the parts of a split model, and a vision tower ("mmproj") beside the model.

Source: ggml-org/llama.cpp `tools/gguf-split` (names and keys of parts), `tools/mtmd/clip.cpp` (towers).
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.files.formats import PART, gguf_keys, is_gguf, list_files
from gemwright.checkpoint.files.gguf import GgufFile, open_gguf
from gemwright.checkpoint.ollama import find_projector

MAX_PARTS = 1000
"""Maximum number of parts of a split model."""
TOWER = "clip"
"""Architecture of a file with a vision tower."""
PROJECTION, PROJECTION_NORM = "mm.input_projection.weight", "mm.soft_emb_norm.weight"

_log = logging.getLogger(__name__)


def open_gguf_model(path: Path) -> GgufFile:
    """Open a GGUF model with all its parts and the vision tower beside it, as one file.

    A Gemma 3 without a tower gets the one of a `*.gguf` file in its folder that fits. If several fit, they must be the
    same tower in several encodings, else none is used.

    Raises:
        CheckpointError: A file is missing, damaged, or not one of the model's.
    """
    file = open_gguf(path)
    count = file.integer("split.count") or 0
    if count > 1:
        file = _open_parts(file, count)
    if file.text("general.architecture") != "gemma3" or any(name.startswith("v.") for name in file.tensors):
        return file
    tower = _find_tower(file)
    if tower is None:
        return file
    keys = {key: value for key, value in tower.metadata.items() if key.startswith("clip.")}
    return _join(file, tower, {**file.metadata, **keys})


def is_tower(path: Path) -> bool:
    """Return whether a GGUF file holds a vision tower alone."""
    return gguf_keys(path).get("general.architecture") == TOWER


def _open_parts(given: GgufFile, count: int) -> GgufFile:
    """Return all parts of a split model as one file; the first has the metadata."""
    path, name = given.path, PART.search(given.path.name)
    if count > MAX_PARTS:
        raise file_error(path, f"claims to be one of {count} parts")
    if name is None or int(name[2]) != count:
        remedy = f"name the parts like model-00001-of-{count:05}.gguf or merge them with `llama-gguf-split --merge`"
        raise file_error(path, f"is one of {count} parts of a model, whose name does not tell the others", remedy)
    paths = [path.with_name(PART.sub(f"-{number:05}-of-{count:05}", path.name)) for number in range(1, count + 1)]
    if missing := [part.name for part in paths if not part.exists()]:
        raise file_error(path, f"is one of {count} parts, and {missing[0]} is missing", "put all parts into one folder")
    parts = [given if part == path else open_gguf(part) for part in paths]
    file = parts[0]
    for number, part in enumerate(parts):
        if (part.integer("split.no"), part.integer("split.count")) != (number, count):
            raise file_error(part.path, f"is not part {number + 1} of {count}, as its name says")
        file = file if part is file else _join(file, part, file.metadata)
    total = file.integer("split.tensors.count")
    if total is not None and total != len(file.tensors):
        raise file_error(file.path, f"its {count} parts have {len(file.tensors)} tensors instead of {total}")
    return replace(file, path=path)


def _join(file: GgufFile, other: GgufFile, metadata: Mapping[str, object]) -> GgufFile:
    if twice := file.tensors.keys() & other.tensors.keys():
        raise file_error(other.path, f"tensor {min(twice)!r:.80} is also in {file.path.name}")
    return replace(file, metadata=metadata, tensors={**file.tensors, **other.tensors}, maps={**file.maps, **other.maps})


def _find_tower(file: GgufFile) -> GgufFile | None:
    """Return the tower for a model, or None if there is none or not one alone."""
    projector = find_projector(file.path)
    paths = [path for path in list_files(file.path.parent) if path.suffix.lower() == ".gguf" and path != file.path]
    candidates = [projector] if projector else [path for path in paths if is_gguf(path) and is_tower(path)]
    towers = [tower for path in candidates if _fits(tower := open_gguf(path), file)]
    if len(towers) > 1 and any(not np.array_equal(_norm(tower), _norm(towers[0])) for tower in towers):
        names = ", ".join(tower.path.name for tower in towers)
        _log.warning("%s: several vision towers fit (%s); none is used", file.path, names)
        return None
    return towers[0] if towers else None


def _fits(tower: GgufFile, model: GgufFile) -> bool:
    """Return whether a tower is a Gemma 3's and projects to the width of a model."""
    kinds = [tower.text(f"clip.{key}projector_type") for key in ("", "vision.")]
    projection = tower.tensors.get(PROJECTION)
    ours = all(name.startswith(("v.", "mm.")) for name in tower.tensors)
    return (
        "gemma3" in kinds
        and ours
        and PROJECTION_NORM in tower.tensors
        and projection is not None
        and projection.shape[-1:] == (model.integer("gemma3.embedding_length"),)
    )


def _norm(tower: GgufFile) -> NDArray[np.float32]:
    return np.asarray(tower.read(PROJECTION_NORM), np.float32)
