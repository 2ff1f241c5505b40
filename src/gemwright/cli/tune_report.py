"""The output of `gemwright tune`: the run, its progress and its results."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gemwright.cli import render

if TYPE_CHECKING:
    from gemwright.train.run import Progress, Run

MIN_SECONDS = 10.0
"""Least time between two lines of progress that stay, in seconds."""
SHARE_OF_TIME = 0.05
"""Least time between two lines of progress that stay, as a share of the time so far."""


def describe(run: "Run") -> list[tuple[str, str]]:
    """Return the data, the packing and the recipe of a run as names and texts."""
    size, recipe = run.dataset.statistics, run.recipe
    return [
        ("model", run.name),
        (
            "data",
            f"{run.dataset.kind}: {size.records:,} records, {size.documents:,} documents, {size.tokens:,} tokens, "
            f"{size.learned / size.tokens:.0%} of them learned",
        ),
        *(("", note) for note in run.dataset.notes),
        *_describe_held_out(run),
        *_describe_stages(run),
        (
            "packing",
            f"{recipe.packing}: {run.batches.steps_per_epoch:,} steps of {recipe.batch_size} x {recipe.length} tokens "
            f"an epoch, {run.batches.padding:.1%} padding",
        ),
        ("recipe", _describe_recipe(run)),
    ]


def _describe_recipe(run: "Run") -> str:
    recipe = run.recipe
    names = {"lora": "LoRA", "qlora": "LoRA over weights as stored"}
    words = [
        f"{names[recipe.method]}, rank {recipe.rank}, alpha {recipe.alpha:g}"
        if recipe.method in names
        else "all weights"
    ]
    words += [f"{recipe.optimizer} at {recipe.peak_learning_rate:g} ({recipe.schedule})", recipe.dtype]
    words += [f"{recipe.accumulation} parts a step"] * (recipe.accumulation > 1)
    words += [f"seed {recipe.seed}"]
    return ", ".join(words)


def _describe_stages(run: "Run") -> list[tuple[str, str]]:
    return [("" if number else "stages", line) for number, line in enumerate(describe_shares(run))]


def describe_shares(run: "Run") -> list[str]:
    """Return a line for each stage of a mixture: its steps, and the shares of the sources in its tokens."""
    from gemwright.data.mixture import Mixture

    if not isinstance(run.batches, Mixture):
        return []
    return [
        f"steps {first + 1:,} to {last:,}: "
        + ", ".join(f"{share:.2%} {name}" for name, share in run.batches.shares(first, last).items())
        for first, last in run.batches.stages
    ]


def _describe_held_out(run: "Run") -> list[tuple[str, str]]:
    if run.held_out is None:
        return []
    size = run.held_out.statistics
    return [("held out", f"{size.records:,} records, {size.tokens:,} tokens")]


def show_data(run: "Run", count: int) -> None:
    """Print documents token by token."""
    from gemwright.data.show import show

    for line in show(run.dataset, run.tokenizer, count):
        render.write(f"{line}\n")


def note(sentence: str) -> None:
    """Print a sentence about the run, and show that it goes on."""
    render.note(sentence)
    render.status("Computing ...")


class ProgressLines:
    """Reports of steps on standard error: a live line on a terminal, and some lines that stay."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        """Report a step."""
        line, now = format_progress(progress), time.monotonic()
        wait = max(MIN_SECONDS, SHARE_OF_TIME * (now - self._start))
        stays = progress.step <= 1 or progress.step == progress.steps or progress.held_out is not None
        if stays or progress.samples or now - self._last >= wait:
            self._last = now
            render.note(line)
            for text in progress.samples:
                render.note(f"  sample: {render.printable(text)}")
        render.status(line[: shutil.get_terminal_size().columns - 1])


def format_progress(progress: "Progress") -> str:
    """Return a step as one line; step 0 is the state before the training."""
    held_out = [] if progress.held_out is None else [f"held-out loss {progress.held_out:.4f}"]
    shown = {name: value for name, value in progress.metrics.items() if not name.startswith("share of ")}
    metrics = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items()]
    if progress.step == 0:
        return "  ".join([f"step 0/{progress.steps}", *held_out, *metrics])
    tokens, learned = (count / progress.seconds for count in (progress.tokens, progress.learned))
    parts = [f"step {progress.step}/{progress.steps}", f"loss {progress.loss:.4f}", *held_out, *metrics]
    parts += [f"{tokens:,.0f} tokens/s ({learned:,.0f} learned)", f"{progress.utilization:.0%} utilized"]
    return "  ".join([*parts, render.size(progress.memory), f"{format_seconds(progress.remaining)} left"])


def format_seconds(seconds: float) -> str:
    """Return a duration as text, such as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def print_result(run: "Run", folder: Path) -> None:
    """Print the folder of the result, and commands that use it."""
    render.write(f"{folder}\n")
    if run.objective.name == "reward":
        render.note(f"Try it:    gemwright score --reward --model {folder} --prompt 'Name a gem.' 'Ruby.'")
        return
    command = "chat" if run.dataset.form == "chat" else "generate"
    command = command if run.dataset.images is None else "see IMAGE PROMPT"
    render.note(f"Try it:    gemwright {command} --model {folder}")
    if run.recipe.method != "full":
        render.note(f"Merge it:  gemwright convert {run.name} {run.out / 'merged'} --to huggingface --adapter {folder}")
