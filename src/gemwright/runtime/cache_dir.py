"""The persistent compilation cache: a program that was compiled once on a machine is read from its disk afterwards."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where gemwright keeps what it can make again: `gemwright` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    Source: XDG Base Directory Specification 0.8, in which a relative path counts as unset.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "gemwright"


def writable(folder: Path) -> bool:
    """Whether files can be put into a folder, which is made if need be, for its owner alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def enable_cache() -> Path | None:
    """Let JAX keep every compiled program on disk, before the first one is compiled.

    A folder that is configured already, by `JAX_COMPILATION_CACHE_DIR` or in the program, stays, and so do its limits.

    Returns:
        The folder in use; None where there is none to write to, and each start then compiles anew.
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
