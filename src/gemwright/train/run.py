"""A run: from a model and data to an adapter or a tuned model, which can be stopped and continued at any step."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from gemwright.errors import DataError, GemwrightError
from gemwright.runtime import distributed, fork, machine
from gemwright.runtime.cache_dir import enable_cache
from gemwright.runtime.folder_lock import lock_folder
from gemwright.sharding import BATCH_AXES, default_sizes, make_mesh, parse_mesh, use
from gemwright.train.checkpoints import Checkpoints
from gemwright.train.folder import LOCK, MARKER, Note, claimed
from gemwright.train.forecast import forecast, require
from gemwright.train.loop import Intervals, Loop, Report
from gemwright.train.made_with import describe
from gemwright.train.metrics import Metrics, NoMetrics, Progress
from gemwright.train.optimizer import make_optimizer
from gemwright.train.prepare import Run, prepare
from gemwright.train.program import compile_programs
from gemwright.train.result import result_path
from gemwright.train.step import TrainState, describe_state, place_start

__all__ = ["Progress", "Run", "prepare", "train"]

CHECKPOINTS = "checkpoints"
EVALUATIONS = 5
"""Number of held-out losses on the way."""


def train(
    run: Run,
    report: Report = lambda progress: None,
    note: Note = lambda sentence: None,
    *,
    save_every: int = 50,
    evaluate_every: int | None = None,
    accept_changes: bool = False,
    mesh: str | None = None,
) -> Path:
    """Train to the end, or continue a run that was stopped, and write the result.

    Args:
        run: The run.
        report: Called after each step.
        note: Called with sentences for the user: the forecast, what is continued, what was damaged.
        save_every: Number of steps between checkpoints.
        evaluate_every: Number of steps between held-out losses and samples; by default a fifth of the run.
        accept_changes: Continue the folder's run although its data, recipe or model changed.
        mesh: How the devices divide the work, such as `data=2,fsdp=4` (see `gemwright.sharding`); by default all
            devices, if they are several, divide the weights and the sequences of a batch.

    Returns:
        The folder of the result.

    Raises:
        GemwrightError: The folder is of another run or in use, memory or disk space does not suffice, or a loss is not
            finite.
        KeyboardInterrupt: Ctrl-C; the state is saved.
        SystemExit: SIGTERM; the state is saved.
    """
    fork.require_not_forked()
    if not distributed.is_first():
        report = note = _say_nothing
    machine.set_threads()
    enable_cache()
    lock = lock_folder(run.out, "run", LOCK, MARKER)
    with use(_mesh(mesh, run)), distributed.in_first(lock):
        made_with = describe(run)
        with distributed.in_first(claimed(run.out, made_with, accept_changes, note)):
            pass
        with Checkpoints(run.out / CHECKPOINTS, made_with, note) as checkpoints:
            result = result_path(run.out, run.recipe)
            if checkpoints.newest == run.steps and result.exists():
                note(f"This run is finished: {result} is its result after {run.steps:,} steps.")
                return result
            intervals = Intervals(save_every, evaluate_every or -(-run.steps // EVALUATIONS))
            with distributed.noticing_loss("start all of them again to continue after the last checkpoint"):
                state = _train(run, checkpoints, intervals, report, note, accept_changes)
        trained = distributed.gather(state.trained if state.average is None else state.average)
        if distributed.is_first():
            run.objective.write(run, trained)
        distributed.largest(0)  # the others wait
        return result


def _say_nothing(said: object) -> None:
    """Do nothing with what the first process reports."""


def _mesh(mesh: str | None, run: Run) -> Mesh | None:
    """Return the mesh of a run; None for one device."""
    count = jax.device_count()
    if mesh is None and count == 1:
        return None
    made = make_mesh(default_sizes(jax.devices()) if mesh is None else parse_mesh(mesh))
    size, parts = run.recipe.batch_size // run.recipe.accumulation, math.prod(made.shape[axis] for axis in BATCH_AXES)
    if size % parts:
        raise GemwrightError(
            f"{size} sequences at a time cannot be divided among {parts} devices; use a multiple as the batch size, or "
            "another mesh."
        )
    return made


def _train(
    run: Run, checkpoints: Checkpoints, intervals: Intervals, report: Report, note: Note, accept_changes: bool
) -> TrainState:
    """Compile, load or restore, and train; return the last state."""
    checkpoint, recipe, objective = run.checkpoint, run.recipe, run.objective
    optimizer = make_optimizer(recipe, run.steps)
    abstract, frozen = _abstract(run, optimizer)
    position = None if checkpoints.newest is None else checkpoints.read_position(abstract)
    programs = compile_programs(
        checkpoint.config, recipe, optimizer, abstract, frozen, objective, run.held_out is not None
    )
    need = forecast(run.dataset, run.batches, frozen, abstract, programs.step)
    note(str(need))
    require(need, run.out)
    frozen = objective.load_frozen(recipe, checkpoint, frozen)
    if position is None:
        state = place_start(optimizer, objective.load_trained(recipe, checkpoint), recipe, abstract)
    else:
        state = checkpoints.restore(abstract)
        _move(run, position, accept_changes)
        note(f"Continuing after step {run.batches.step:,} of {run.steps:,}.")
    metrics = Metrics(run.out, run.batches.step) if distributed.is_first() else NoMetrics()
    try:
        return Loop(run, programs, frozen, checkpoints, metrics, intervals, report, note).train(state)
    finally:
        metrics.close()


def _abstract(run: Run, optimizer: optax.GradientTransformation) -> tuple[TrainState, Any]:
    """Return the shapes and dtypes of the state and the frozen weights, which are loaded if their file decides them."""
    trained = run.objective.trained_shapes(run.recipe, run.checkpoint)
    state = describe_state(optimizer, trained, run.recipe)
    return state, run.objective.frozen_shapes(run.recipe, run.checkpoint)


def _move(run: Run, position: Mapping[str, Any], accept_changes: bool) -> None:
    """Move the batches of a run to the position of a checkpoint."""
    try:
        run.batches.set_state(position["batches"])
    except DataError:
        if not accept_changes:
            raise
        run.batches.step = min(position["step"], run.steps)  # other data: the same number of steps
