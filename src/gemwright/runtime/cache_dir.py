"""The cache folder, and JAX's persistent compilation cache in it."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of files that can be made again: `gemwright` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    Source: XDG Base Directory Specification 0.8, in which a relative path counts as unset.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "gemwright"


def writable(folder: Path) -> bool:
    """Return whether a folder is writable, after creating it, readable by its owner alone, if it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


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
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
