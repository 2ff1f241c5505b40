"""Verify a `.tflite` or `.litertlm` that exists: run it beside its source."""

import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError, GemwrightError
from gemwright.model.config import Config
from gemwright.release.litert.export import run_bundle
from gemwright.release.litert.recipes import PACKAGES, RECIPES, expected_bytes
from gemwright.release.targets import Progress
from gemwright.release.verify.report import Check
from gemwright.runtime.child import Report, run_in_child
from gemwright.runtime.installation import require_extra


def verify_litert(artefact: Path, source: Path, progress: Progress) -> Iterator[Check]:
    """Compare an export with the source of its weights on more than 2,048 tokens.

    Raises:
        GemwrightError: The file cannot be read by LiteRT, or the source does not fit in memory in float32.
    """
    require_extra("export", PACKAGES, "Running an export to LiteRT")
    if not artefact.is_file():
        raise CheckpointError(f"{artefact} is not a file; choose a .tflite or .litertlm.")
    is_bundle = artefact.suffix == ".litertlm"
    with TemporaryDirectory() as name:
        folder = Path(name)
        written = _unpack(artefact, folder) if is_bundle else artefact
        weights = find_recipe(open_checkpoint(source).config, written.stat().st_size)
        run: Any = run_in_child(_compare, source, written, weights, log=folder / "log", report=progress)
        yield Check("run", *run)
        if is_bundle:
            try:
                run_in_child(run_bundle, source, written, artefact, log=folder / "log", report=progress)
            except GemwrightError as error:
                yield Check("bundle", "failed", str(error))
            else:
                yield Check("bundle", "ok", "LiteRT-LM has the same tokens and continues prompts as LiteRT does")


def find_recipe(config: Config, size: int) -> str:
    """Return the recipe with the largest weights that fit in a file of a size in bytes, or else the smallest."""
    sizes = {name: expected_bytes(recipe, config) for name, recipe in RECIPES.items()}
    fitting = [name for name in sizes if sizes[name] <= size] or [min(sizes, key=sizes.__getitem__)]
    return max(fitting, key=sizes.__getitem__)


def _unpack(bundle: Path, folder: Path) -> Path:
    """Write the decoder of a bundle into a folder, and return its path."""
    from litert_lm_builder.litertlm_peek import peek_litertlm_file  # pyright: ignore[reportMissingImports]

    try:
        peek_litertlm_file(str(bundle), str(folder), io.StringIO())
    except Exception as error:  # whatever reading a damaged file raises
        problem = f"is no bundle of LiteRT-LM ({error!s:.200})"
        raise file_error(bundle, problem, "export the model again") from error
    found = sorted(folder.glob("*.tflite"))
    if len(found) != 1:
        raise CheckpointError(f"{bundle} has {len(found)} models; choose a bundle with one, the decoder.")
    return found[0]


def _compare(source: Path, written: Path, weights: str, report: Report) -> tuple[str, str, dict[str, float]]:
    from gemwright.release.litert.check import compare_with_source, find_excess

    found, recipe = compare_with_source(source, written, report), RECIPES[weights]
    excess = find_excess(found, recipe)
    numbers = {"nll": found.written, "source_nll": found.source, "agreement": found.agreement, "tokens": found.tokens}
    return "ok" if excess is None else "failed", f"{weights}: {found}" + (f" ({excess})" if excess else ""), numbers
