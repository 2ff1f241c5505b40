"""Load models: `gemwright.load`, which reads a GGUF file while JAX is imported.

This module must not import JAX; `gemwright.loading.model` does.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gemwright.checkpoint.files.formats import is_gguf
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.precision import Precision, parse_precision
from gemwright.runtime import cache_dir, startup

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from jax.typing import DTypeLike

    from gemwright.api import Model
    from gemwright.checkpoint.load import Progress


def load(
    model: str | Path,
    *,
    dtype: "Precision | DTypeLike | None" = None,
    variant: str | None = None,
    draft: str | Path | None = None,
    progress: "Progress" = lambda done, total: None,
) -> "Model":
    """Load a model.

    Args:
        model: A path, a name from `gemwright models`, or a hub id.
        dtype: Precision of weights and activations: "stored", "float32", "bfloat16", or such a dtype of NumPy or JAX.
            "stored" keeps matrices in their stored format, for the native CPU kernels. By default bfloat16 on an
            accelerator; on a CPU "stored", or float32 without gemwright-native.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        draft: A smaller model with the same vocabulary, which proposes draft tokens; a path, name or hub id.
        progress: Called with the number of bytes read and the total.

    Raises:
        GemwrightError: A model is not found, cannot be read or does not fit in memory, the precision is not supported,
            or the draft model has another vocabulary.
    """
    precision = None if dtype is None else parse_precision(dtype)
    with reading(locate(str(model)), native=precision in (None, "stored")) as prefetch, startup.paused():
        from gemwright.loading.model import load_model

        return load_model(model, precision, variant=variant, draft=draft, progress=progress, prefetch=prefetch)


def reading(path: Path, *, native: bool) -> "AbstractContextManager[GgufPrefetch | None]":
    """Prefetch a checkpoint in a thread if it is a GGUF file; other formats gain nothing.

    Args:
        path: The checkpoint.
        native: Whether matrices are kept in their stored format if the kernels support it.
    """
    if not is_gguf(path):
        return nullcontext()
    return GgufPrefetch(path, native=native, tokenizer_cache=cache_dir.cache_folder() / "tokenizers")
