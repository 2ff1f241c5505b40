"""A description of all that determines a run: its model, data, recipe and machine."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

import gemwright
from gemwright.checkpoint.digest import model_digest
from gemwright.data import Dataset
from gemwright.runtime import machine
from gemwright.train.prepare import Run


def describe(run: Run) -> dict[str, Any]:
    """Return the description of a run, as values of JSON."""
    return {
        "gemwright": gemwright.__version__,
        "model": {"name": run.name, "digest": model_digest(run.checkpoint)},
        "data": _describe_data(run.dataset),
        "held_out": {"files": {}} if run.held_out is None else _describe_data(run.held_out),
        "recipe": run.recipe.document(),
        "objective": {"name": run.objective.name, **run.objective.document()},
        "machine": _describe_machine(),
    }


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    digests = {str(path): _digest_file(path) for path in dataset.files}
    return {
        "files": {path: hashlib.sha256(digest).hexdigest() for path, digest in digests.items()},
        "sha256": {path: digest.hex() for path, digest in digests.items()},
        "fingerprint": dataset.fingerprint,
    }


def _digest_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


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
