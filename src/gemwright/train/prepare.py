"""Open the model and the data of a run: `prepare`. No weight is loaded yet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.data import Batches, Dataset
from gemwright.errors import GemwrightError
from gemwright.text.tokenizer import Tokenizer
from gemwright.train import held_out as holding
from gemwright.train.objectives import image_text
from gemwright.train.objectives.objective import NEXT_TOKEN, Objective
from gemwright.train.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A model, data and settings.

    Attributes:
        name: The model as it was given.
        checkpoint: The model.
        tokenizer: Its tokenizer.
        dataset: The training data.
        batches: Its batches.
        held_out: Held-out data, if there are any.
        recipe: The settings.
        out: The folder of the results.
        prompts: Prompts that are continued now and then, as samples.
        objective: What is minimized.
    """

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    dataset: Dataset
    batches: Batches
    held_out: Dataset | None
    recipe: Recipe
    out: Path
    prompts: tuple[str, ...] = ()
    objective: Objective = NEXT_TOKEN

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
    held_out: str | Path | float | None = None,
    prompts: Sequence[str] = (),
    objective: Objective = NEXT_TOKEN,
) -> Run:
    """Open a model and tokenize the data.

    Args:
        model: A path, a name from `gemwright models`, or a hub id.
        data: A file or folder of records, or several.
        out: The folder to write to.
        recipe: The settings.
        chat: Whether prompts and completions are conversations; see `gemwright.data.open_dataset`.
        held_out: A file or folder of held-out records, or the share of the records that is held out, 0 for none; by
            default see `gemwright.train.held_out`.
        prompts: Prompts that are continued now and then, as samples.
        objective: What is minimized.

    Raises:
        GemwrightError: The model or the data cannot be read, or do not fit each other.
    """
    checkpoint = open_checkpoint(locate(str(model)))
    check_length(recipe, checkpoint, model)
    tokenizer = Tokenizer(checkpoint.vocabulary())

    def read(paths: str | Path | Iterable[str | Path]) -> Dataset:
        return objective.read(paths, checkpoint, tokenizer, recipe, chat)

    if isinstance(held_out, str | Path):
        dataset, held = read(data), read(held_out)
    else:
        dataset, held = holding.split(read(data), held_out, recipe.seed)
    objective, recipe, (dataset,), held = image_text.choose(objective, recipe, checkpoint, [dataset], held)
    made = make_batches(objective, dataset, recipe)
    return Run(str(model), checkpoint, tokenizer, dataset, made, held, recipe, Path(out), tuple(prompts), objective)


def check_length(recipe: Recipe, checkpoint: Checkpoint, model: str | Path) -> None:
    """Check that the sequences of a recipe are not longer than those of a model.

    Raises:
        GemwrightError: They are.
    """
    if recipe.length > checkpoint.config.max_length:
        raise GemwrightError(
            f"length {recipe.length:,} is more than the {checkpoint.config.max_length:,} tokens of {model}; "
            "use a smaller length."
        )


def make_batches(objective: Objective, dataset: Dataset, recipe: Recipe) -> Batches:
    """Return the batches of the recipe's steps, or else of its epochs."""
    one = objective.pack(dataset, recipe)
    if recipe.steps is None:
        return one if recipe.epochs == 1 else objective.pack(dataset, recipe, recipe.epochs)
    made = objective.pack(dataset, recipe, -(-recipe.steps // one.steps_per_epoch))
    made.steps = recipe.steps
    return made
