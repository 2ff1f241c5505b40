"""`gemwright.load`, which makes use of the second that JAX takes to be imported."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.runtime import cache_dir, startup

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from jax.typing import DTypeLike

    from gemwright.api import Model
    from gemwright.checkpoint.load import Progress


def load(
    model: str | Path,
    *,
    dtype: "DTypeLike | None" = None,
    variant: str | None = None,
    draft: str | Path | None = None,
    progress: "Progress" = lambda done, total: None,
) -> "Model":
    """Load a model.

    Args:
        model: A path, a name of `gemwright models`, or a hub id.
        dtype: Of weights and activations. By default what `gemwright.api.choose_dtype` says.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        draft: A smaller model of the same vocabulary, which guesses tokens for this one to verify; as `model` names it.
        progress: Called with the bytes read so far and the bytes in all.

    Raises:
        GemwrightError: it cannot be found, read or held in memory, or the draft does not fit it; the message says why.
    """
    with reading(locate(str(model)), native=dtype is None) as early, startup.paused():
        from gemwright import api

        return api.load(model, dtype=dtype, variant=variant, draft=draft, progress=progress, early=early)


def reading(path: Path, *, native: bool) -> "AbstractContextManager[GgufPrefetch | None]":
    """Read a file in a thread, if it is of a format for which that pays.

    Args:
        path: Of a checkpoint.
        native: Whether matrices will be kept at their own bits where they can.
    """
    if not path.is_file() or path.suffix != ".gguf":
        return nullcontext()
    return GgufPrefetch(path, native=native, tokenizer_cache=cache_dir.cache_folder() / "tokenizers")
