"""The formats of other runtimes that `gemwright export` writes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from gemwright.errors import GemwrightError
from gemwright.release.verify.report import Check

Progress = Callable[[str], None]
"""Called with a line about each stage of an export."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        weights: Encoding of the weights, such as int8; None for the target's default.
        context: Number of tokens of the decode state, for programs of fixed shapes.
        verify: Whether the written model is run beside its source, and removed if it differs by more than its bound.
    """

    weights: str | None = None
    context: int = 1024
    verify: bool = True


Exporter = Callable[[Path, Path, ExportOptions, Progress], None]
"""Writes the checkpoint of the first path to the second, which must not exist."""

_EXPORTERS: Mapping[str, str] = {
    "litert": "gemwright.release.litert.export:export",
    "stablehlo": "gemwright.release.stablehlo:export_stablehlo",
    "mlx": "gemwright.release.mlx:export_mlx",
    "ollama": "gemwright.release.ollama:export_ollama",
}
"""Module and function of each target, imported when it is chosen."""
Verifier = Callable[[Path, Path, Progress], Iterable[Check]]
"""Runs an export, the first path, beside its source."""
_VERIFIERS: Mapping[str, str] = {
    "litert": "gemwright.release.litert.verify:verify_litert",
    "stablehlo": "gemwright.release.stablehlo:verify_stablehlo",
}
"""Module and function for each target that is not a checkpoint."""
MANIFEST = "stablehlo.json"
"""Name of the file that describes a folder of StableHLO programs."""
SUFFIXES: Mapping[str, str] = {".tflite": "litert", ".litertlm": "litert"}
"""Targets that the suffix of a file names."""


def choose_target(path: Path, to: str | None) -> str:
    """Return the target of an export.

    Raises:
        GemwrightError: It is not given, and the suffix of the path names none.
    """
    if to is None and path.suffix not in SUFFIXES:
        raise GemwrightError(f"{path} does not say which format to write; add --to, one of {', '.join(_EXPORTERS)}.")
    return to or SUFFIXES[path.suffix]


def find_exporter(target: str) -> Exporter:
    """Import the exporter of a target."""
    module, name = _EXPORTERS[target].split(":")
    return getattr(import_module(module), name)


def find_verifier(path: Path) -> Verifier | None:
    """Import what verifies an export; None for a checkpoint."""
    target = "stablehlo" if (path / MANIFEST).is_file() else SUFFIXES.get(path.suffix)
    if target is None or target not in _VERIFIERS:
        return None
    module, name = _VERIFIERS[target].split(":")
    return getattr(import_module(module), name)
