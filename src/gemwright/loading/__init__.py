"""Load models: `gemwright.load`, which reads a GGUF file while JAX is imported.

This module must not import JAX; `gemwright.loading.model` does.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Never

from gemwright.checkpoint.adapters import AdapterNames, find_model
from gemwright.checkpoint.files.formats import is_gguf
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.options import refuse_unknown
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
    adapter: AdapterNames = (),
    mesh: str | None = None,
    progress: "Progress" = lambda done, total: None,
    **unknown: Never,
) -> "Model":
    """Load a model.

    Args:
        model: A path, a name from `gemwright models`, a hub id, or a LoRA adapter, whose base model is then loaded.
        dtype: Precision of weights and activations: "stored", "float32", "bfloat16", or such a dtype of NumPy, JAX or
            PyTorch. "stored" keeps matrices in their stored format, for the native CPU kernels. By default bfloat16 on
            an accelerator; on a CPU "stored", or float32 without the C++ kernels.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        draft: A smaller model with the same vocabulary, which proposes draft tokens; a path, name or hub id.
        adapter: A LoRA adapter (PEFT folder or GGUF file), several, or several with their weights.
        mesh: How devices share the model, such as "tensor=8" (docs/scale.md); by default one device has all of it.
        progress: Called with the number of bytes read and the total.
        **unknown: No other argument is accepted.

    Raises:
        GemwrightError: A model is not found, cannot be read or does not fit in memory, the precision is not supported,
            the draft model has another vocabulary, the mesh does not fit the devices, or an argument is unknown.
    """
    refuse_unknown(unknown, ("model", "dtype", "variant", "draft", "adapter", "mesh", "progress"))
    precision = None if dtype is None else parse_precision(dtype)
    path, adapters = find_model(model, adapter)
    with reading(path, native=mesh is None and precision in (None, "stored")) as prefetch, startup.paused():
        from gemwright.loading.model import load_model

        loaded = load_model(
            path,
            precision,
            variant=variant,
            draft=draft,
            adapters=adapters,
            mesh=mesh,
            progress=progress,
            prefetch=prefetch,
        )
        return replace(loaded, name=str(model))


def reading(path: Path, *, native: bool) -> "AbstractContextManager[GgufPrefetch | None]":
    """Prefetch a checkpoint in a thread if it is a GGUF file; other formats gain nothing.

    Args:
        path: The checkpoint.
        native: Whether matrices are kept in their stored format if the kernels support it.
    """
    if not is_gguf(path):
        return nullcontext()
    tokenizers = cache_dir.cache_folder() / "tokenizers"
    return GgufPrefetch(path, native=native, tokenizer_cache=tokenizers if cache_dir.is_trusted(tokenizers) else None)
