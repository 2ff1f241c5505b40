"""Metrics of a run: a line of JSON per step, TensorBoard's events and a plot of the loss."""

import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError

LINES = "metrics.jsonl"
PLOT = "loss.png"
EVENTS = "tensorboard"


@dataclass(frozen=True)
class Progress:
    """One step of a run, as it is reported.

    Attributes:
        step: Number of steps taken.
        steps: Number of steps of the run.
        loss: Mean loss of labeled tokens.
        norm: Norm of the gradient before clipping.
        learning_rate: The step's learning rate.
        tokens: Number of tokens of the step, without padding.
        learned: Number of labeled tokens.
        seconds: Duration of the step.
        flops: Number of floating-point operations of the model per second; see `flops.count`.
        utilization: Share of the speed at which this machine multiplies large matrices.
        memory: Most memory of the process so far in bytes; of the device if it is not a CPU.
        remaining: Forecast of the seconds until the end.
        held_out: Mean loss of labeled tokens of the held-out data after the step; None if it was not computed.
        samples: Replies to the sample prompts after the step.
        time: When the step ended, in seconds since 1970; None before the first.
        metrics: Other measures of the objective, by name.
    """

    step: int
    steps: int
    loss: float
    norm: float
    learning_rate: float
    tokens: int
    learned: int
    seconds: float
    flops: float
    utilization: float
    memory: int
    remaining: float
    held_out: float | None = None
    samples: tuple[str, ...] = ()
    time: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


_LOGGED = ("loss", "norm", "learning_rate", "held_out", "utilization")


class Metrics:
    """The files of metrics in a folder.

    Args:
        folder: The folder of the run.
        step: Number of steps already taken. Lines of later steps are dropped, and all if it is 0.

    Raises:
        GemwrightError: A file cannot be read or written.
    """

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        try:
            self.history = _truncate(folder / LINES, step)
            self._file = (folder / LINES).open("a", encoding="utf-8")
        except OSError as error:
            raise _write_error(folder / LINES, error) from error
        self._events = _open_events(folder / EVENTS, step)

    def write(self, progress: Progress) -> None:
        """Add a step. Numbers that are not finite become null.

        Raises:
            GemwrightError: The file cannot be written.
        """
        values = {name: _finite(value) for name, value in asdict(progress).items()}
        values["metrics"] = {name: _finite(value) for name, value in progress.metrics.items()}
        self.history.append(values)
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise _write_error(self._folder / LINES, error) from error
        if self._events is not None:
            for name in _LOGGED:
                if (value := values[name]) is not None and (progress.step or name == "held_out"):
                    self._events.add_scalar(name, value, progress.step)
            for name, value in progress.metrics.items():
                if math.isfinite(value):
                    self._events.add_scalar(name, value, progress.step)
            for index, text in enumerate(progress.samples):
                self._events.add_text(f"sample {index}", text, progress.step)

    def sync(self) -> None:
        """Flush all to the disk before a checkpoint says that its steps were taken, and draw the plot."""
        try:
            os.fsync(self._file.fileno())
            if self._events is not None:
                self._events.flush()
            self.plot()
        except OSError as error:
            raise _write_error(self._folder, error) from error

    def plot(self) -> None:
        """Draw the losses."""
        from gemwright.train.plot import Curve, plot

        points = {
            name: [(line["step"], line[name]) for line in self.history if line.get(name) is not None]
            for name in ("loss", "held_out")
        }
        plot(self._folder / PLOT, [Curve("training", points["loss"]), Curve("held-out", points["held_out"])])

    def close(self) -> None:
        """Close the files."""
        with suppress(OSError):
            self._file.close()
        if self._events is not None:
            self._events.close()


class NoMetrics:
    """Writes nothing, as the first process does."""

    def write(self, progress: Progress) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _truncate(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of a file after those of a step, and return the others."""
    history: list[dict[str, Any]] = []
    if not path.exists():
        return history
    end = 0
    with path.open("rb+") as file:
        for line in file:
            try:
                values = json.loads(line)
                if not line.endswith(b"\n") or values["step"] > step or step == 0:
                    break
            except (ValueError, TypeError, KeyError):
                break
            history.append(values)
            end += len(line)
        file.truncate(end)
    return history


def _open_events(folder: Path, step: int) -> Any:
    """Return a writer of TensorBoard's events; None without tensorboardX."""
    torch = sys.modules.get("torch")
    if torch is None:
        sys.modules["torch"] = None  # pyright: ignore  # tensorboardX would import it, for its types only
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    finally:
        if torch is None:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=step + 1, flush_secs=60)


def _write_error(path: Path, error: OSError) -> GemwrightError:
    return GemwrightError(
        f"{path} cannot be written ({error.strerror or error}); the last checkpoint is kept: correct that, then run "
        "the same again."
    )


def start_line(steps: int) -> Progress:
    """Return the progress before the first step."""
    return Progress(0, steps, math.nan, math.nan, 0.0, 0, 0, 0.0, 0.0, 0.0, 0, 0.0)
