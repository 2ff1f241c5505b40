"""A description of all that determines a run: its model, data, recipe and machine."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import gemwright
from gemwright.checkpoint.open import Checkpoint
from gemwright.data import Dataset
from gemwright.data.sources import digest
from gemwright.runtime import machine
from gemwright.train.recipe import Recipe

SAMPLES, SAMPLE_BYTES = 64, 1 << 14
"""Number and size of the parts of a file of weights that a digest covers."""
_WEIGHTS = (".gguf", ".safetensors", ".npz")


def describe(
    name: str, checkpoint: Checkpoint, dataset: Dataset, held_out: Dataset | None, recipe: Recipe
) -> dict[str, Any]:
    """Return the description of a run, as values of JSON."""
    return {
        "gemwright": gemwright.__version__,
        "model": {"name": name, "digest": model_digest(checkpoint)},
        "data": _describe_data(dataset),
        "held_out": {"files": {}} if held_out is None else _describe_data(held_out),
        "recipe": recipe.document(),
        "machine": _describe_machine(),
    }


def model_digest(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 of the config and of the sizes and some parts of the files of weights."""
    total = hashlib.sha256(repr(checkpoint.config).encode())
    for path in _weight_files(checkpoint.path):
        size = path.stat().st_size
        total.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for index in range(SAMPLES):
                file.seek(index * max(SAMPLE_BYTES, size // SAMPLES))
                total.update(file.read(SAMPLE_BYTES))
    return total.hexdigest()


def _weight_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    yield from [file for file in files if file.suffix in _WEIGHTS] or files


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    files = {str(path): digest([path]) for path in dataset.files}
    return {"files": files, "fingerprint": dataset.fingerprint}


def _describe_machine() -> dict[str, Any]:
    device = jax.local_devices()[0]
    threads = os.environ.get(machine.THREADS)
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "threads": int(threads) if threads else machine.cores(),
    }


def _processor() -> str:
    """Return the kind of the processor, on which the order of XLA's sums depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
