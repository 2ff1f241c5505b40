"""From `--model` to a model in memory: the terms, the forecast, the progress bar."""

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemwright.checkpoint.locate import DEMO, locate
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
    """A model and what its loading told.

    Attributes:
        model: The model.
        name: As the person called it.
        dtype: Of its weights.
        seconds: That the loading took.
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
    early: "GgufPrefetch | None" = None,
) -> Loaded:
    """Find a model, say what it will need if asked to, and load it behind a progress bar.

    Args:
        name: What the person calls it.
        dtype: Of the weights, if the person said so.
        variant: Its published variant, likewise.
        verbose: Whether to say what it will need.
        draft: A model that guesses for it.
        early: What `reading` read of it.

    Raises:
        GemwrightError: it cannot be found, read or held in memory.
    """
    if early is None:
        with reading(name, dtype) as early:
            return _load(name, dtype, variant, draft, early, verbose=verbose)
    return _load(name, dtype, variant, draft, early, verbose=verbose)


def reading(name: str, dtype: str | None) -> "AbstractContextManager[GgufPrefetch | None]":
    """Begin to read a model that is on this machine, while options are checked and JAX is imported."""
    with importing():
        from gemwright.loading import reading as read

    try:
        path = locate(name, may_download=False)
    except GemwrightError:  # told when it is loaded
        return nullcontext()
    return read(path, native=dtype in (None, "stored"))


def _load(
    name: str, dtype: str | None, variant: str | None, draft: str | None, early: "GgufPrefetch | None", *, verbose: bool
) -> Loaded:
    import_jax()
    path = find(name)
    draft_path = None if draft is None else find(draft)
    cache_dir.enable_cache()
    from gemwright.loading.model import load_model

    precision = chosen_dtype(dtype)
    if verbose:
        _announce(name, path, precision, variant)
    start = time.perf_counter()
    with Bar(f"Loading {Path(name).name}") as bar:
        model = load_model(path, precision, variant=variant, draft=draft_path, progress=bar, prefetch=early)
    return Loaded(model, name, dtype_name(precision), time.perf_counter() - start)


def find(name: str, *, may_download: bool = True) -> Path:
    """The path of a model, fetched if need be; the packaged weights' terms are told at their first use."""
    path = locate(name, may_download=may_download)
    if name == DEMO and path.is_file():
        _tell_terms_once()
    return path


def _tell_terms_once() -> None:
    marker = cache_dir.cache_folder() / "gemma-terms-told"
    if marker.exists():
        return
    render.news(f"The weights of {DEMO} are used under Gemma's terms of use: {TERMS}")
    if cache_dir.writable(marker.parent):
        marker.touch()


def chosen_dtype(given: str | None) -> "Precision":
    """The dtype asked for, or the one that suits the device, as `choose_precision` does.

    Raises:
        GemwrightError: JAX finds no device.
    """
    from gemwright.loading.model import choose_precision

    try:
        return choose_precision(given)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # an assertion of JAX fails where JAX_PLATFORMS names what is absent
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise GemwrightError(
            f"JAX finds no device with JAX_PLATFORMS={wanted!r}; unset it, or install JAX for that device."
        ) from error


def dtype_name(dtype: "Precision") -> str:
    """What a choice of dtype is called."""
    return "as stored" if dtype == "stored" else dtype


def _announce(name: str, path: Path, dtype: "Precision", variant: str | None) -> None:
    from gemwright import memory
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.loading.model import default_sampling, forecast

    checkpoint = open_checkpoint(path, variant)
    free = memory.available()
    held = "at their own bits" if dtype == "stored" or checkpoint.quantized else f"in {dtype} once loaded"
    rows = [
        ("model", name),
        ("path", str(path)),
        ("weights", f"{checkpoint.format}, {held}"),
        ("memory", needs(forecast(checkpoint, dtype)) + (f"; {render.size(free)} free" if free else "")),
        ("defaults", f"{describe(default_sampling(checkpoint))}, from {sampling_source(checkpoint)}"),
    ]
    render.facts(rows, render.err())


def needs(forecast: "Forecast") -> str:
    """A forecast in words."""
    return (
        f"{render.size(forecast.total)}: {render.size(forecast.weights)} of weights, "
        f"{render.size(forecast.state)} of state, the rest for the program"
    )


def default_settings(checkpoint: "Checkpoint") -> dict[str, Any]:
    """A checkpoint's sampling defaults by name; the seed is no property of a checkpoint."""
    from gemwright.loading.model import default_sampling

    return {name: value for name, value in vars(default_sampling(checkpoint)).items() if name != "seed"}


def sampling_source(checkpoint: "Checkpoint") -> str:
    """Where a model's sampling defaults come from."""
    if not {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"} & checkpoint.generation.keys():
        return "published defaults"
    return "the GGUF file" if checkpoint.format == "gguf" else "generation_config.json"


def describe(sampling: "Sampling") -> str:
    """Sampling settings in words, without those that do nothing."""
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
    """A progress bar on standard error, if a terminal is there, which goes away when it is full."""

    def __init__(self, label: str):
        self._label = label
        self._progress: Any = None

    def __enter__(self) -> "Bar":
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            self._progress = Progress(*columns, console=render.err(), transient=True)
            self._progress.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show how many bytes have been read."""
        if self._progress is None:
            return
        if not self._progress.tasks:
            self._progress.add_task(self._label)
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()
