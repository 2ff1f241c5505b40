"""Load the model of `--model`: terms of use, memory forecast and progress bar."""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gemwright.checkpoint.adapters import find_model, is_adapter
from gemwright.checkpoint.demo import DEMO
from gemwright.checkpoint.locate import locate
from gemwright.cli import render
from gemwright.cli.imports import import_jax, importing
from gemwright.errors import GemwrightError
from gemwright.families import TERMS
from gemwright.runtime import cache_dir

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gemwright.api import Model
    from gemwright.checkpoint.open import Checkpoint
    from gemwright.checkpoint.prefetch import GgufPrefetch
    from gemwright.generate.sampling import Sampling
    from gemwright.memory import Forecast
    from gemwright.precision import Precision


@dataclass(frozen=True)
class Loaded:
    """A loaded model.

    Attributes:
        model: The model.
        name: The name given by the user.
        dtype: Data type, as `--dtype` names it.
        seconds: Load time in seconds.
    """

    model: "Model"
    name: str
    dtype: str
    seconds: float


def load(
    name: str,
    *,
    dtype: str | None,
    variant: str | None,
    verbose: bool,
    draft: str | None = None,
    adapters: Mapping[str, float] = MappingProxyType({}),
    mesh: str | None = None,
    prefetch: "GgufPrefetch | None" = None,
) -> Loaded:
    """Locate and load a model with a progress bar.

    Args:
        name: Path, published name or hub id.
        dtype: Data type, or None for the default of the device.
        variant: Published variant, for formats that do not record it.
        verbose: Whether to print the memory forecast first.
        draft: Draft model for speculative decoding.
        adapters: LoRA adapters by name, with the weight of each.
        mesh: How devices share the model; None for one device.
        prefetch: Prefetched file of `reading`.

    Raises:
        GemwrightError: the model cannot be found or read, or does not fit in memory.
    """
    if prefetch is None:
        with reading(name, dtype, mesh) as prefetch:
            return _load(name, dtype, variant, draft, adapters, mesh, prefetch, verbose=verbose)
    return _load(name, dtype, variant, draft, adapters, mesh, prefetch, verbose=verbose)


def reading(name: str, dtype: str | None, mesh: str | None = None) -> "AbstractContextManager[GgufPrefetch | None]":
    """Start reading a local model while options are checked and JAX is imported; say so on a terminal."""
    render.status(f"Loading {Path(name).name} ...")
    with importing():
        from gemwright.loading import reading as read

    try:
        path = locate(name, may_download=False)
    except GemwrightError:  # reported by load
        return nullcontext()
    return nullcontext() if is_adapter(path) else read(path, native=mesh is None and dtype in (None, "stored"))


def _load(
    name: str,
    dtype: str | None,
    variant: str | None,
    draft: str | None,
    adapters: Mapping[str, float],
    mesh: str | None,
    prefetch: "GgufPrefetch | None",
    *,
    verbose: bool,
) -> Loaded:
    import_jax()
    path, updates = find_model(find(name), adapters)
    draft_path = None if draft is None else find(draft)
    cache_dir.enable_cache()
    from gemwright.loading.model import load_model

    precision = chosen_dtype(dtype)
    warn_without_kernels()
    if verbose:
        _announce(name, path, precision, variant)
    start = time.perf_counter()
    render.status(f"Loading {Path(name).name} ...")
    with Bar(f"Loading {Path(name).name}") as bar:
        model = load_model(
            path,
            precision,
            variant=variant,
            draft=draft_path,
            adapters=updates,
            mesh=mesh,
            progress=bar,
            prefetch=prefetch,
        )
    return Loaded(model, name, precision, time.perf_counter() - start)


def warn_without_kernels() -> None:
    """Print a warning if JAX computes on a CPU and the C++ kernels were not compiled."""
    import jax

    from gemwright.kernels import native

    if jax.default_backend() == "cpu" and not native.installed():
        render.warn(native.MISSING)


def find(name: str, *, may_download: bool = True) -> Path:
    """Return the path of a model, downloading it if needed; print the demo weights' terms at first use."""
    path = locate(name, may_download=may_download)
    if name == DEMO and path.is_file():
        _print_terms_once()
    return path


def _print_terms_once() -> None:
    marker = cache_dir.cache_folder() / "gemma-terms-shown"
    if marker.exists():
        return
    render.note(f"{DEMO} is provided under the Gemma Terms of Use: {TERMS}")
    if cache_dir.writable(marker.parent):
        marker.touch()


def chosen_dtype(given: str | None) -> "Precision":
    """Return the requested precision, or the default of the device.

    Raises:
        GemwrightError: JAX finds no device.
    """
    from gemwright.loading.model import choose_precision

    try:
        return choose_precision(given)
    except (RuntimeError, AssertionError) as error:  # JAX fails an assertion if JAX_PLATFORMS names an absent device
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise GemwrightError(
            f"JAX finds no device with JAX_PLATFORMS={wanted!r}; unset it or install JAX for that device."
        ) from error


def _announce(name: str, path: Path, dtype: "Precision", variant: str | None) -> None:
    from gemwright import memory
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.loading.model import default_sampling, forecast

    checkpoint = open_checkpoint(path, variant)
    free = memory.available()
    held = "kept as stored" if dtype == "stored" or checkpoint.quantized else f"loaded as {dtype}"
    rows = [
        ("model", name),
        ("path", str(path)),
        ("weights", f"{checkpoint.format}, {held}"),
        ("memory", needs(forecast(checkpoint, dtype)) + (f"; {render.size(free)} free" if free else "")),
        ("defaults", f"{describe(default_sampling(checkpoint))}, from {sampling_source(checkpoint)}"),
    ]
    render.facts(rows, render.err())


def needs(forecast: "Forecast") -> str:
    """Return a memory forecast as text."""
    return (
        f"{render.size(forecast.total)}: {render.size(forecast.weights)} weights, "
        f"{render.size(forecast.state)} KV cache and state, the rest buffers and program"
    )


def default_settings(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return a checkpoint's default sampling parameters by name, without the seed."""
    from gemwright.loading.model import default_sampling

    return {name: value for name, value in vars(default_sampling(checkpoint)).items() if name != "seed"}


def sampling_source(checkpoint: "Checkpoint") -> str:
    """Return the origin of a model's default sampling parameters."""
    if not {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"} & checkpoint.generation.keys():
        return "published defaults"
    return "the GGUF file" if checkpoint.format == "gguf" else "generation_config.json"


def describe(sampling: "Sampling") -> str:
    """Return sampling parameters as text, without those that have no effect."""
    if sampling.temperature == 0:
        words = ["greedy"]
    else:
        words = [f"temperature {sampling.temperature:g}"]
        words += [f"top-k {sampling.top_k}"] * (sampling.top_k > 0)
        words += [f"top-p {sampling.top_p:g}"] * (sampling.top_p < 1)
        words += [f"min-p {sampling.min_p:g}"] * (sampling.min_p > 0)
    words += [f"repetition penalty {sampling.repetition_penalty:g}"] * (sampling.repetition_penalty != 1)
    return ", ".join(words)


class Bar:
    """A progress bar on standard error, if that is a terminal; removed when complete."""

    def __init__(self, label: str):
        self._label = label
        self._progress: Any = None

    def __enter__(self) -> "Bar":
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            self._progress = Progress(*columns, console=render.err(), transient=True)
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show the number of bytes read so far."""
        if self._progress is None:
            return
        if not self._progress.tasks:
            render.clear_status()
            self._progress.start()
            self._progress.add_task(self._label)
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()
