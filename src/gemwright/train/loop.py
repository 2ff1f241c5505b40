"""The steps of a run: each is taken, measured and reported, and what is needed to continue after it is saved."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from gemwright.data import Batch
from gemwright.errors import DataError, GemwrightError, NotFiniteError
from gemwright.train import flops
from gemwright.train.checkpoints import Checkpoints
from gemwright.train.folder import Note
from gemwright.train.forecast import peak_memory
from gemwright.train.metrics import Metrics, NoMetrics, Progress, start_line
from gemwright.train.optimizer import learning_rate
from gemwright.train.prepare import Run
from gemwright.train.program import Programs, evaluate, to_device
from gemwright.train.samples import sample
from gemwright.train.step import Measures, TrainState
from gemwright.train.stop import StopSignal

Report = Callable[[Progress], None]
"""Called after each step."""


@dataclass(frozen=True)
class Intervals:
    """Numbers of steps between checkpoints, and between held-out losses and samples."""

    save: int
    evaluate: int


class Loop:
    """The loop over the steps that are left of a run.

    Args:
        run: The run, whose batches are at the step to begin with.
        programs: Its programs.
        frozen: The frozen weights.
        checkpoints: Where its state is saved.
        metrics: Where its metrics are written.
        intervals: When to save and to evaluate.
        report: Called after each step.
        note: Called with sentences for the user.
    """

    def __init__(
        self,
        run: Run,
        programs: Programs,
        frozen: Any,
        checkpoints: Checkpoints,
        metrics: Metrics | NoMetrics,
        intervals: Intervals,
        report: Report,
        note: Note,
    ):
        self._run, self._batches, self._programs, self._frozen = run, run.batches, programs, frozen
        self._checkpoints, self._metrics, self._intervals = checkpoints, metrics, intervals
        self._report, self._note = report, note
        self._held_out = None if run.held_out is None else run.objective.pack(run.held_out, run.recipe)
        self._rate = learning_rate(run.recipe, run.steps)
        self._peak = flops.measure_peak(run.recipe.dtype)

    def train(self, state: TrainState) -> TrainState:
        """Take all steps that are left, and return the state after them.

        Raises:
            NotFiniteError: A loss or gradient is not finite. The state before the step is saved.
            GemwrightError: A file cannot be written.
            KeyboardInterrupt: Ctrl-C; the state is saved.
            SystemExit: SIGTERM; the state is saved.
        """
        with StopSignal(self._note) as stop:
            if self._batches.step == 0:
                self._evaluate(start_line(self._run.steps), state)
            first, began = self._batches.step, time.perf_counter()
            while (batch := self._next(state)) is not None:
                begin = time.perf_counter()
                batch = self._complete(batch, state)
                state, measures = self._programs.step(state, self._frozen, to_device(batch))
                stop.wait(measures.loss)
                progress = self._measure(batch, measures, time.perf_counter() - begin)
                if not math.isfinite(progress.loss) or not math.isfinite(progress.norm):
                    self._refuse(progress, batch, state)
                average = (time.perf_counter() - began) / (self._batches.step - first)
                progress = replace(progress, remaining=average * (self._run.steps - self._batches.step))
                self._evaluate(progress, state) if self._is_due(self._intervals.evaluate) else self._write(progress)
                stop.announce()
                stop.share()
                if stop.received is not None or self._is_due(self._intervals.save):
                    self._save(state)
                if stop.received is not None and self._batches.step < self._run.steps:
                    self._stop(stop)
        return state

    def _next(self, state: TrainState) -> Batch | None:
        """Return the next batch, None after the last. If it cannot be read, the state is saved before the error."""
        try:
            return next(self._batches, None)
        except DataError:
            self._save(state)
            self._checkpoints.wait()
            raise

    def _complete(self, batch: Batch, state: TrainState) -> Batch:
        """Return a batch with all that its step needs; if that fails, the state before the step is saved."""
        run = self._run
        try:
            return run.objective.complete(run, self._batches.step, batch, state.trained, self._frozen)
        except GemwrightError:
            self._step_back(state)
            self._note(f"The state after step {self._batches.step:,} is saved.")
            raise

    def _step_back(self, state: TrainState) -> None:
        """Save the state before a step that is not taken."""
        self._batches.step -= 1
        self._save(state)
        self._checkpoints.wait()

    def _is_due(self, interval: int) -> bool:
        return self._batches.step % interval == 0 or self._batches.step == self._run.steps

    def _measure(self, batch: Batch, measures: Measures, seconds: float) -> Progress:
        speed = flops.count(self._run.checkpoint.config, self._run.recipe, batch) / seconds
        return Progress(
            step=self._batches.step,
            steps=self._run.steps,
            loss=float(measures.loss),
            norm=float(measures.norm),
            learning_rate=float(np.asarray(self._rate(self._batches.step - 1))),
            tokens=int(np.sum(batch.segments > 0)),
            learned=int(np.sum(batch.learned)),
            seconds=seconds,
            flops=speed,
            utilization=speed / self._peak,
            memory=peak_memory(),
            remaining=0.0,
            time=round(time.time(), 3),
            metrics={name: float(value) for name, value in measures.metrics.items()} | self._batches.metrics(),
        )

    def _write(self, progress: Progress) -> None:
        self._metrics.write(progress)
        self._report(progress)

    def _evaluate(self, progress: Progress, state: TrainState) -> None:
        """Write the progress with the held-out loss and the samples."""
        run, trained = self._run, state.trained if state.average is None else state.average
        if self._held_out is not None and run.held_out is not None:
            held_out = replace(run, dataset=run.held_out)
            found = map(self._held_out.__getitem__, range(len(self._held_out)))
            batches = (run.objective.complete(held_out, 0, batch, trained, self._frozen) for batch in found)
            loss, means = evaluate(self._programs.evaluation, trained, self._frozen, batches)
            metrics = {**progress.metrics, **{f"held-out {name}": value for name, value in means.items()}}
            progress = replace(progress, held_out=loss, metrics=metrics)
        if run.prompts:
            params = run.objective.assemble(run.recipe, trained, self._frozen)
            chat = run.dataset.form == "chat"
            samples = sample(run.checkpoint, run.tokenizer, params, run.prompts, chat=chat)
            progress = replace(progress, samples=samples)
        if progress.step or progress.held_out is not None or progress.samples:
            self._write(progress)

    def _save(self, state: TrainState) -> None:
        self._metrics.sync()
        self._checkpoints.save(state, self._position())

    def _position(self) -> dict[str, Any]:
        return {"step": self._batches.step, "batches": self._batches.get_state()}

    def _stop(self, stop: StopSignal) -> NoReturn:
        self._checkpoints.wait()
        self._note(
            f"Stopped after step {self._batches.step:,} of {self._run.steps:,}, which is saved; run the same command "
            "again to continue."
        )
        stop.exit()

    def _refuse(self, progress: Progress, batch: Batch, state: TrainState) -> NoReturn:
        """Save the state before a step, which the step left as it was, and raise an error about it."""
        self._metrics.write(progress)
        self._step_back(state)
        what = "loss" if not math.isfinite(progress.loss) else "gradient"
        raise NotFiniteError(
            f"The {what} of step {progress.step:,} is not finite; its records are "
            f"{self._run.dataset.name_records(batch.records)}. The state after step "
            f"{self._batches.step:,} is saved: use a lower learning rate or other data, and accept the change."
        )
