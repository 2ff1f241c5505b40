"""A run: from a model and data to an adapter or a tuned model, which can be stopped and continued at any step."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.data import Batches, Dataset, batches, open_dataset
from gemwright.errors import GemwrightError
from gemwright.loading.model import make_chat_template
from gemwright.runtime import fork, machine
from gemwright.runtime.cache_dir import enable_cache
from gemwright.text.tokenizer import Tokenizer
from gemwright.train import lora
from gemwright.train.checkpoints import Checkpoints
from gemwright.train.load import load_stacked
from gemwright.train.optimizer import learning_rate, make_optimizer
from gemwright.train.program import compile_step, to_device
from gemwright.train.recipe import Recipe
from gemwright.train.result import write_result
from gemwright.train.step import TrainState, start


@dataclass(frozen=True)
class Progress:
    """One step of a run, as it is reported.

    Attributes:
        step: Number of steps taken.
        steps: Number of steps of the run.
        loss: Mean loss of labelled tokens.
        norm: Norm of the gradient before clipping.
        learning_rate: The step's learning rate.
        tokens: Number of tokens of the step, without padding.
        learned: Number of labelled tokens.
        seconds: Duration of the step.
    """

    step: int
    steps: int
    loss: float
    norm: float
    learning_rate: float
    tokens: int
    learned: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """What a run is made of, before any weight is loaded.

    Attributes:
        name: The model as it was given.
        checkpoint: The model.
        tokenizer: Its tokenizer.
        dataset: The data.
        batches: Its batches.
        recipe: The settings.
        out: The folder of the results.
    """

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    dataset: Dataset
    batches: Batches
    recipe: Recipe
    out: Path

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.batches)


def prepare(
    model: str | Path,
    data: str | Path | Iterable[str | Path],
    out: str | Path,
    recipe: Recipe,
    chat: bool | None = None,
) -> Run:
    """Open a model and tokenize the data.

    Args:
        model: A path, a name from `gemwright models`, or a hub id.
        data: A file or folder of records, or several.
        out: The folder to write to.
        recipe: The settings.
        chat: Whether prompts and completions are conversations; see `gemwright.data.open_dataset`.

    Raises:
        GemwrightError: The model or the data cannot be read, or do not fit each other.
    """
    checkpoint = open_checkpoint(locate(str(model)))
    tokenizer = Tokenizer(checkpoint.vocabulary())
    template = make_chat_template(checkpoint, tokenizer)
    tuned = bool(checkpoint.chat_templates)
    dataset = open_dataset(data, tokenizer, template, max_length=recipe.length, chat=chat, tuned=tuned)
    epochs = recipe.epochs
    made = _batches(dataset, recipe, epochs)
    if recipe.steps is not None:
        made = _batches(dataset, recipe, -(-recipe.steps // made.steps_per_epoch))
        made.steps = recipe.steps
    return Run(str(model), checkpoint, tokenizer, dataset, made, recipe, Path(out))


def _batches(dataset: Dataset, recipe: Recipe, epochs: int) -> Batches:
    return batches(
        dataset,
        batch_size=recipe.batch_size,
        length=recipe.length,
        packing=recipe.packing,
        seed=recipe.seed,
        epochs=epochs,
    )


def train(run: Run, report: Callable[[Progress], None] = lambda progress: None, save_every: int = 50) -> Path:
    """Train to the end, or continue a run that was stopped, and write the result.

    Args:
        run: The run.
        report: Called after each step.
        save_every: Number of steps between checkpoints.

    Returns:
        The folder of the adapter.

    Raises:
        GemwrightError: The loss is not finite, or the folder is of another run.
    """
    fork.require_not_forked()
    machine.set_threads()
    enable_cache()
    config, recipe = run.checkpoint.config, run.recipe
    run.out.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(recipe, run.steps)
    if recipe.method == "lora":
        frozen = load_stacked(run.checkpoint, recipe.dtype)
        trained: Any = lora.init(config, recipe.rank, recipe.seed)
    else:
        frozen, trained = None, load_stacked(run.checkpoint, "float32")
    state = start(optimizer, trained, recipe)
    del trained
    checkpoints = Checkpoints(run.out / "checkpoints")
    try:
        if (found := checkpoints.restore(state)) is not None:
            state, position = found
            run.batches.set_state(position)
        step = compile_step(config, recipe, optimizer, state, frozen)
        rate = learning_rate(recipe, run.steps)
        with (run.out / "metrics.jsonl").open("a") as log:
            for batch in run.batches:
                begin = time.perf_counter()
                state, measures = step(state, frozen, to_device(batch))
                progress = Progress(
                    step=run.batches.step,
                    steps=run.steps,
                    loss=float(measures.loss),
                    norm=float(measures.norm),
                    learning_rate=float(rate(run.batches.step - 1)),
                    tokens=int(np.sum(batch.segments > 0)),
                    learned=int(measures.learned),
                    seconds=time.perf_counter() - begin,
                )
                if not np.isfinite(progress.loss) or not np.isfinite(progress.norm):
                    raise GemwrightError(
                        f"The loss of step {progress.step} is not finite: {_name_records(run, batch.records)}."
                    )
                log.write(json.dumps(progress.__dict__) + "\n")
                log.flush()
                report(progress)
                if run.batches.step % save_every == 0 or run.batches.step == run.steps:
                    checkpoints.save(state, run.batches.get_state())
    finally:
        checkpoints.close()
    return _write(run, state)


def _name_records(run: Run, records: np.ndarray) -> str:
    return ", ".join(str(run.dataset.place(int(record))) for record in np.unique(records[records >= 0])[:4])


def _write(run: Run, state: TrainState) -> Path:
    trained = state.trained if state.average is None else state.average
    template = make_chat_template(run.checkpoint, run.tokenizer) if run.dataset.form == "chat" else None
    return write_result(run.out, run.name, run.checkpoint, template, run.recipe, trained)
