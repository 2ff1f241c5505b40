"""Find the files of models that Ollama has downloaded.

A manifest, a small JSON file, names the layers of a model, and `blobs` holds them under the digest of their content.
Source: ollama/ollama `manifest/`, `types/model/name.go`, `envconfig/config.go`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.formats import list_files
from gemwright.checkpoint.files.json_file import read_json
from gemwright.errors import CheckpointError

PREFIX = "ollama:"
"""Start of the name of a model of Ollama's."""
MODEL, PROJECTOR, ADAPTER = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "projector", "adapter"))
"""Media types of layers."""
REGISTRY, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
"""Defaults for the parts of a name."""
MAX_MANIFESTS = 4096
"""Maximum number of manifests that are looked at."""
SYSTEM_FOLDER = Path("/usr/share/ollama/.ollama/models")
"""Folder of Ollama's service on Linux."""

_PART = r"[\w][\w.-]{0,127}"
_NAME = re.compile(rf"(?:(?:({_PART}(?::\d{{1,5}})?)/)?({_PART})/)?({_PART})(?::({_PART}))?", re.ASCII)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.ASCII)


def locate_ollama(name: str) -> Path:
    """Return the file with the weights of a model, such as `gemma3:4b` or `hf.co/owner/name:tag`.

    Raises:
        CheckpointError: Ollama has no such model, or its files are missing or damaged.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{name!r:.200} is not the name of an Ollama model; use name:tag, such as gemma3:4b.")
    registry, namespace, model, tag = match[1] or REGISTRY, match[2] or NAMESPACE, match[3], match[4] or TAG
    for folder in _folders():
        manifest = folder / "manifests" / registry / namespace / model / tag
        if manifest.is_file():
            return _blob(folder, manifest, MODEL) or _no_model(manifest)
    known = sorted({_name_of(folder, manifest) for folder in _folders() for manifest in _manifests(folder)})
    there = f"there are {', '.join(known[:20])}" if known else f"there is none in {' or '.join(map(str, _folders()))}"
    raise CheckpointError(f"Ollama has no model {name:.200}; {there}; fetch it with `ollama pull {name:.200}`.")


def list_ollama() -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of every model that is whole."""
    for folder in _folders():
        for manifest in _manifests(folder):
            try:
                blob = _blob(folder, manifest, MODEL)
            except CheckpointError:  # damaged, or not downloaded to its end
                continue
            if blob is not None:
                yield f"{PREFIX}{_name_of(folder, manifest)}", blob


def find_projector(blob: Path) -> Path | None:
    """Return the separate file with the vision tower of a model in Ollama's `blobs`, or None if there is none.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    folder, match = blob.parent.parent, _DIGEST.fullmatch(blob.name)
    if match is None or blob.parent.name != "blobs":
        return None
    for manifest in _manifests(folder):
        try:
            model, projector = _digest(manifest, MODEL), _digest(manifest, PROJECTOR)
        except CheckpointError:  # a manifest of another model
            continue
        if model == match[1] and projector is not None:
            return _blob(folder, manifest, PROJECTOR)
    return None


def _folders() -> list[Path]:
    """Return the folders of models: that of `OLLAMA_MODELS`, else the user's and that of the service."""
    if configured := os.environ.get("OLLAMA_MODELS", "").strip("\"' "):
        return [Path(configured)]
    try:
        home = [Path.home() / ".ollama" / "models"]
    except RuntimeError:  # no home folder
        home = []
    return [*home, SYSTEM_FOLDER]


def _manifests(folder: Path) -> Iterator[Path]:
    """Yield the manifests in a folder: registry/namespace/model/tag."""
    places = [folder / "manifests"]
    for _ in range(4):
        places = [entry for place in places if place.is_dir() for entry in list_files(place)][:MAX_MANIFESTS]
    yield from (place for place in places if place.is_file())


def _name_of(folder: Path, manifest: Path) -> str:
    registry, namespace, model, tag = manifest.relative_to(folder / "manifests").parts
    place = "" if (registry, namespace) == (REGISTRY, NAMESPACE) else f"{namespace}/"
    return f"{'' if registry == REGISTRY else f'{registry}/'}{place}{model}:{tag}"


def _blob(folder: Path, manifest: Path, kind: str) -> Path | None:
    """Return the file of a layer; None if the manifest has no such layer."""
    digest = _digest(manifest, kind)
    if digest is None:
        return None
    blob = folder / "blobs" / f"sha256-{digest}"
    if not blob.is_file():
        raise CheckpointError(f"{blob} is missing, which {manifest} names; run `ollama pull` again.")
    return blob


def _digest(manifest: Path, kind: str) -> str | None:
    layers = read_json(manifest).get("layers")
    for layer in layers if isinstance(layers, list) else ():
        entry: dict[str, Any] = layer if isinstance(layer, dict) else {}
        if entry.get("mediaType") == kind:
            match = _DIGEST.fullmatch(str(entry.get("digest")))
            if match is None:
                raise CheckpointError(f"{manifest}: a layer has no valid digest; run `ollama pull` again.")
            return match[1]
    return None


def _no_model(manifest: Path) -> Path:
    raise CheckpointError(f"{manifest} names no file with weights; use a model that runs locally, or pull it again.")
