"""Export a decoder to LiteRT: convert, write, run beside its source, and only then give it its name."""

import sys
from dataclasses import replace
from pathlib import Path

from gemwright.checkpoint.convert import check_new
from gemwright.checkpoint.files.atomic import temporary_path
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import GemwrightError
from gemwright.families import RECURRENTGEMMA
from gemwright.model.config import Config
from gemwright.release.litert.program import CHUNK, image_chunk
from gemwright.release.litert.recipes import PACKAGES, RECIPES, expected_bytes
from gemwright.release.targets import ExportOptions, Progress
from gemwright.runtime.child import Report, run_in_child
from gemwright.runtime.installation import require_extra

PROGRAM_BYTES = 64 << 20
"""Most bytes of a file that are no weights: the operations, names, and the zero points of rows."""


def export(source: Path, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write a `.tflite` or `.litertlm`, completely or not at all.

    Args:
        source: The checkpoint.
        target: The file to make.
        options: Weights f32, int8 (the default) or int4; the context; whether the file is run beside its source.
        progress: Called with a line about each stage.

    Raises:
        GemwrightError: An option or the model does not fit the format, a library fails, or the file differs from its
            source by more than its recipe allows.
    """
    weights = options.weights or "int8"
    if weights not in RECIPES:
        raise GemwrightError(f"LiteRT has no weights {weights!r:.40}; choose one of {', '.join(RECIPES)}.")
    require_extra("export", PACKAGES, "Exporting to LiteRT")
    check_new(target)
    checkpoint = open_checkpoint(source)
    # LiteRT-LM has its own files for towers; a bundle is for text.
    config = replace(checkpoint.config, vision=None) if target.suffix == ".litertlm" else checkpoint.config
    _check_shapes(config, target, options.context)
    expected = expected_bytes(RECIPES[weights], config)
    with temporary_path(target, target.parent, 2 * expected) as folder:
        folder.mkdir()
        written, log = folder / "model.tflite", folder / "log"
        peak = run_in_child(_write, source, written, config, weights, options.context, log=log, report=progress)
        size = written.stat().st_size
        progress(f"Wrote {size:,} bytes of {weights} weights, with at most {peak / 1e9:.2f} GB of memory.")
        if not expected <= size <= expected + PROGRAM_BYTES:
            raise GemwrightError(
                f"{target} was removed: it has {size:,} bytes, and weights of {weights} have {expected:,}; report this."
            )
        if options.verify:
            run_in_child(_check, source, written, weights, log=log, report=progress)
        if target.suffix == ".litertlm":
            from gemwright.release.litert.bundle import write_bundle

            tflite, written = written, folder / "model.litertlm"
            write_bundle(checkpoint, tflite, written, options.context)
            if options.verify:
                run_in_child(run_bundle, source, tflite, written, log=log, report=progress)
        check_new(target)
        written.rename(target)


def _check_shapes(config: Config, target: Path, context: int) -> None:
    """Check that a model and a context can be exported to a kind of file.

    Raises:
        GemwrightError: They cannot.
    """
    if not 2 <= context <= config.max_length or (context > CHUNK and context % CHUNK):
        raise GemwrightError(
            f"--context is {context}; give 2 to {config.max_length} tokens, above {CHUNK} in multiples of it."
        )
    if context < (needed := image_chunk(config)):
        raise GemwrightError(f"--context is {context}; an image with some text takes at least {needed} tokens.")
    if target.suffix == ".litertlm" and RECURRENTGEMMA.matches(config):
        raise GemwrightError("LiteRT-LM has no recurrent states, as RecurrentGemma has; export it to a .tflite.")


def _write(source: Path, target: Path, config: Config, weights: str, context: int, report: Report) -> int:
    """Write a `.tflite` and return the most memory that this process had, in bytes.

    Args:
        source: The checkpoint.
        target: The file to make.
        config: The model, perhaps without the source's tower.
        weights: A key of `RECIPES`.
        context: Number of tokens of the caches.
        report: Called with a line about each stage.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    from gemwright.release.litert.write import write_checkpoint

    write_checkpoint(open_checkpoint(source), target, config, weights, context, report)
    return _peak_memory()


def _check(source: Path, written: Path, weights: str, report: Report) -> None:
    from gemwright.release.litert.check import check_model

    check_model(source, written, RECIPES[weights], report)


def run_bundle(source: Path, tflite: Path, bundle: Path, report: Report) -> None:
    """Run a bundle with LiteRT-LM beside its decoder, in the process that calls it, which imports LiteRT."""
    from gemwright.release.litert.check import check_bundle

    check_bundle(source, tflite, bundle, report)


def _peak_memory() -> int:
    """Return the most memory of this process in bytes. On Linux its usage also counts the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
