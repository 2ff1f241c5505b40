"""The check of a conversion: what was written is compared with its source, and removed if it differs."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gemwright import memory
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.errors import GemwrightError
from gemwright.loading import gate
from gemwright.loading.model import forecast
from gemwright.release.verify.checkpoint import check_tensors
from gemwright.release.verify.report import Check, some
from gemwright.release.verify.source import check_description, check_run, compare_adapters
from gemwright.release.verify.tensors import compare_tensors


@contextmanager
def checked_model(
    source: Path,
    target: Path,
    dtype: str | None,
    adapters: Mapping[Path, float],
    report: Callable[[object], None],
    variant: str | None = None,
    run: bool | None = None,
) -> Generator[None]:
    """Compare the model that the `with` block writes with its source, and remove it if it fails.

    Every weight is compared, some rows at a time, and so are the tokenizer and the chat template. A model with merged
    adapters runs beside its source and them instead. One with quantized weights also runs, if memory holds both in
    float32; floats that are equal bit for bit need no run.

    Args:
        source: The checkpoint that it is made of.
        target: The folder or file that the block makes.
        dtype: The dtype of its matrices, such as q8_0; None for that of the source.
        adapters: Path and weight of each adapter that is merged.
        report: Called with what was found if the model passes.
        variant: Name of the source's published variant, for an Orbax tree or an `.npz`.
        run: Whether to run it; None to run it if it is quantized and memory suffices.

    Raises:
        GemwrightError: The model differs from its source; or a run is wanted, and memory does not suffice.
    """
    if adapters:
        with gate.checked(source, target, dtype, adapters, report, variant):
            yield
        return
    if run:
        memory.require(forecast(open_checkpoint(source, variant), "float32"), str(source))
    yield
    with _removed_if_it_fails(target):
        checks = list(_compare(open_checkpoint(target), open_checkpoint(source, variant), variant, run))
        _require(target, checks)
    report("; ".join(check.detail for check in checks if check.name in ("weights", "run")))


@contextmanager
def checked_average(average: Checkpoint, target: Path, report: Callable[[object], None]) -> Generator[None]:
    """Compare the model that the `with` block writes with the average that it is made of, and remove it if it fails.

    Raises:
        GemwrightError: A weight, the tokenizer or the chat template differs.
    """
    yield
    with _removed_if_it_fails(target):
        checks = list(_compare(open_checkpoint(target), average, None, run=False))
        _require(target, checks)
    report("; ".join(check.detail for check in checks if check.name == "weights"))


@contextmanager
def checked_adapter(source: Path, target: Path, base: Path | None) -> Generator[None]:
    """Compare the adapter that the `with` block writes with its source, and remove it if it fails.

    Raises:
        GemwrightError: The updates of the two differ.
    """
    yield
    with _removed_if_it_fails(target):
        _require(target, [compare_adapters(target, source, base)])


@contextmanager
def _removed_if_it_fails(target: Path) -> Generator[None]:
    try:
        yield
    except BaseException:
        gate.remove(target)
        raise


def _require(target: Path, checks: list[Check]) -> None:
    if failed := [f"{check.name}: {check.detail}" for check in checks if check.result == "failed"]:
        raise GemwrightError(f"{target} was removed, as it differs from its source ({some(failed)}); report this.")


def _compare(target: Checkpoint, source: Checkpoint, variant: str | None, run: bool | None) -> Generator[Check]:
    yield from check_description(target, source)
    tensors = check_tensors(target)
    yield tensors
    if tensors.result == "failed":
        return
    weights = compare_tensors(target, source, lambda done, total: None)
    yield weights
    quantized = weights.numbers.get("quantized", 0) > 0
    if weights.result == "ok" and (run or (run is None and quantized and _fits(source))):
        yield check_run(target, source, variant)


def _fits(source: Checkpoint) -> bool:
    try:
        memory.require(forecast(source, "float32"), str(source.path))
    except GemwrightError:
        return False
    return True
