"""The cache folder, and JAX's persistent compilation cache in it."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CACHES = {"xla": "compiled programs", "tokenizers": "tokenizers of GGUF files"}
"""The caches by the name of their folder in `cache_folder`."""
MAX_BYTES = 1_000_000_000
"""Maximum size of the compilation cache in bytes when a process starts."""


def cache_folder() -> Path:
    """Return the folder of files that can be made again: `gemwright` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    Without a home, as in some containers, it is a folder of the user in the folder of temporary files.

    Source: XDG Base Directory Specification 0.8, in which a relative path counts as unset.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "gemwright"
    home = _home()
    return home / ".cache" / "gemwright" if home else temporary_folder()


def ensure_home() -> None:
    """Set `HOME` for libraries that need one, if it is missing or relative, and unset a relative `XDG_CACHE_HOME`.

    Without a home, as for the unknown users of some containers, it is a folder of the user among temporary files.
    """
    if not Path(os.environ.get("HOME", "")).is_absolute():
        home, own = _home(), temporary_folder()
        if home is None:
            home = own if writable(own) else tempfile.mkdtemp(prefix="gemwright-")
        os.environ["HOME"] = str(home)
    if not Path(os.environ.get("XDG_CACHE_HOME", "/")).is_absolute():
        del os.environ["XDG_CACHE_HOME"]


def temporary_folder() -> Path:
    """Return the user's own folder among temporary files, for a user or a container without a home."""
    return Path(tempfile.gettempdir()).absolute() / f"gemwright-{os.getuid()}"


def _home() -> Path | None:
    """Return the home of the user; None if there is none or it is relative."""
    if Path(os.environ.get("HOME", "")).is_absolute():
        return Path(os.environ["HOME"])
    import pwd

    try:
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None
    return home if home.is_absolute() else None


def writable(folder: Path) -> bool:
    """Return whether a cache is writable, after creating its folder, for its owner alone, if it is missing."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return is_trusted(folder) and os.access(folder, os.W_OK | os.X_OK)


def is_trusted(folder: Path) -> bool:
    """Return whether nobody else made a cache that is in the folder of temporary files: its programs are executed."""
    if not folder.is_relative_to(Path(tempfile.gettempdir()).absolute()):
        return True
    parts = [part.lstat() for part in (folder, folder.parent) if part.exists() or part.is_symlink()]
    return all(
        part.st_uid == os.getuid() and not part.st_mode & 0o022 and not stat.S_ISLNK(part.st_mode) for part in parts
    )


def enable_cache() -> Path | None:
    """Enable JAX's persistent compilation cache; call it before the first compilation.

    A cache that is configured already, by `JAX_COMPILATION_CACHE_DIR` or by the program, is left as it is.

    Returns:
        The cache's folder, or None if no folder is writable and every start compiles again.
    """
    import jax

    configured: str | None = jax.config.values["jax_compilation_cache_dir"]
    if configured is not None:
        return Path(configured)
    folder = cache_folder() / "xla"
    if not writable(folder):
        return None
    trim(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def trim(folder: Path, most: int) -> None:
    """Delete the files that were not read for the longest time if a cache has more than `most` bytes, down to half.

    JAX can bound its cache itself (`jax_compilation_cache_max_size`), but then stops writing for good once an entry
    lacks its time stamp, as after a crash. Processes may run at once: a file is deleted whole, and at worst made again.
    """
    files = sorted((max(status.st_atime, status.st_mtime), status.st_size, path) for path, status in _files(folder))
    total = sum(size for _, size, _ in files)
    if total <= most:
        return
    for _, size, path in files:
        if total <= most // 2:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


def cache_bytes() -> dict[str, int]:
    """Return the size of each cache in bytes, by the name of its folder."""
    return {name: sum(status.st_size for _, status in _files(cache_folder() / name)) for name in CACHES}


def clear_caches() -> int:
    """Delete all caches, which are made again when they are needed; return the number of bytes freed.

    Raises:
        OSError: A file cannot be deleted.
    """
    freed = 0
    for name in CACHES:
        for path, status in _files(cache_folder() / name):
            path.unlink(missing_ok=True)
            freed += status.st_size
    return freed


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the plain files of a folder, without those of folders in it and without links."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
