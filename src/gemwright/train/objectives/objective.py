"""What a run minimizes: `Objective` is the cross-entropy of next tokens, and other objectives override its methods.

An objective reads the data, says which weights are trained and which are frozen, and computes the loss of a batch. The
loop, its checkpoints and its metrics are the same for all.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import sharding, tree
from gemwright.checkpoint.open import Checkpoint
from gemwright.data import Batch, Batches, Dataset, batches, open_dataset
from gemwright.data.images import ImageReader
from gemwright.loading.model import make_chat_template
from gemwright.model import loss, stack
from gemwright.model.config import Config
from gemwright.model.params import ParamSpec
from gemwright.model.stack import Remat, StackedWeights, stacked_specs
from gemwright.model.transformer import SoftTokens
from gemwright.text.image_format import ImageFormat
from gemwright.text.tokenizer import Tokenizer
from gemwright.train import lora
from gemwright.train.load import load_frozen, load_trained
from gemwright.train.recipe import Recipe
from gemwright.train.result import write_result
from gemwright.typing import Array, Bool, Float, Int

if TYPE_CHECKING:
    from gemwright.train.prepare import Run


@tree.node
class Sequences:
    """A `gemwright.data.Batch` on the device; extras are arrays of an objective whose first axis is B."""

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    learned: Bool[Array, "B T"]
    segments: Int[Array, "B T"]
    extras: dict[str, Array] = field(default_factory=dict[str, Array])


@tree.node
class Sums:
    """Sums over a batch.

    Attributes:
        loss: The sum that is minimized, divided by `count`.
        count: Number of labeled tokens, or of pairs or whatever the loss is a mean over.
        metrics: Sums of other measures by name, which are divided by `count` too.
    """

    loss: Float[Array, ""]
    count: Int[Array, ""]
    metrics: dict[str, Float[Array, ""]] = field(default_factory=dict[str, Array])


@dataclass(frozen=True)
class Objective:
    """The cross-entropy of the next tokens that are learned. The fields of an objective are its settings."""

    name: ClassVar[str] = "next-token"

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON, which are compared when a run is continued."""
        return asdict(self)

    def read(
        self, paths: str | Path | Iterable[str | Path], checkpoint: Checkpoint, tokenizer: Tokenizer, recipe: Recipe,
        chat: bool | None,
    ) -> Dataset:  # fmt: skip
        """Read data.

        Args:
            paths: A file or folder of records, or several.
            checkpoint: The model.
            tokenizer: Its tokenizer.
            recipe: The settings of the run.
            chat: Whether prompts and completions are conversations; see `gemwright.data.open_dataset`.

        Raises:
            DataError: They cannot be read, or do not fit the objective.
        """
        template, tuned = make_chat_template(checkpoint, tokenizer), bool(checkpoint.chat_templates)
        images = make_image_reader(checkpoint, tokenizer)
        return open_dataset(paths, tokenizer, template, max_length=recipe.length, chat=chat, tuned=tuned, images=images)

    def pack(self, dataset: Dataset, recipe: Recipe, epochs: int = 1) -> Batches:
        """Return the batches of some epochs."""
        return batches(
            dataset,
            batch_size=recipe.batch_size,
            length=recipe.length,
            packing=recipe.packing,
            seed=recipe.seed,
            epochs=epochs,
        )

    def extra_shapes(self, config: Config, recipe: Recipe) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes and dtypes of a batch's extras."""
        del config, recipe
        return {}

    def frozen_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return the shapes and dtypes of the frozen weights, or the weights if only their file decides them."""
        match recipe.method:
            case "full":
                return None
            case "lora":
                return weight_shapes(checkpoint.config, recipe.dtype)
            case "qlora":
                return load_frozen(recipe, checkpoint)

    def load_frozen(self, recipe: Recipe, checkpoint: Checkpoint, shapes: Any) -> Any:
        """Load the frozen weights, unless `frozen_shapes` returned them."""
        return shapes if recipe.method == "qlora" else load_frozen(recipe, checkpoint)

    def trained_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return the shapes and dtypes of the trained weights."""
        if recipe.method == "full":
            return weight_shapes(checkpoint.config, "float32")
        return lora_shapes(checkpoint.config, recipe)

    def load_trained(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Load or initialize the trained weights, float32."""
        return load_trained(recipe, checkpoint)

    def assemble(self, recipe: Recipe, trained: Any, frozen: Any) -> StackedWeights:
        """Return the weights of the forward pass, from the trained and the frozen ones."""
        if recipe.method != "full":
            return lora.attach(frozen, trained, recipe.alpha / recipe.rank)

        def rounded(leaf: Array) -> Array:
            return leaf.astype(jnp.dtype(recipe.dtype))

        return jax.tree.map(rounded, trained)

    def complete(self, run: "Run", step: int, batch: Batch, trained: Any, frozen: Any) -> Batch:
        """Return a batch with all that its step needs; called before each step, with the weights after the one before.

        Args:
            run: The run.
            step: The number of the step, from 1.
            batch: The next of `run.batches`.
            trained: The trained weights.
            frozen: The frozen weights.
        """
        del run, step, trained, frozen
        return batch

    def sum_losses(self, config: Config, recipe: Recipe, trained: Any, frozen: Any, batch: Sequences) -> Sums:
        """Return the loss of a batch; differentiated with respect to `trained`."""
        params = self.assemble(recipe, trained, frozen)
        soft_tokens = self.make_soft_tokens(config, recipe, params, batch)
        hidden = stack.forward(config, params, batch.tokens, batch.segments, soft_tokens, recipe.remat)
        head = params.embed if params.head is None else params.head
        total = loss.sum_cross_entropy(config, head, hidden, batch.targets, batch.learned)
        return Sums(total, jnp.sum(batch.learned, dtype=jnp.int32))

    def make_soft_tokens(
        self, config: Config, recipe: Recipe, params: StackedWeights, batch: Sequences
    ) -> SoftTokens | None:
        """Return the soft tokens of the images of a batch; None without images."""
        del config, recipe, params, batch
        return None

    def write(self, run: "Run", trained: Any) -> Path:
        """Write the result of a run and return its folder."""
        template = make_chat_template(run.checkpoint, run.tokenizer) if run.dataset.form == "chat" else None
        return write_result(run.out, run.name, run.checkpoint, template, run.recipe, trained)


NEXT_TOKEN = Objective()


def token_logprobs(config: Config, params: StackedWeights, batch: Sequences, remat: Remat) -> Float[Array, "B T"]:
    """Return log p(target) of each learned target, and 0 for others; differentiable."""
    hidden = stack.forward(config, params, batch.tokens, batch.segments, remat=remat)
    head = params.embed if params.head is None else params.head
    flat = hidden.reshape(-1, hidden.shape[-1])
    losses: Any = loss.token_losses(config, head, flat, batch.targets.reshape(-1), batch.learned.reshape(-1))
    return -losses.reshape(batch.tokens.shape)


def make_image_reader(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ImageReader | None:
    """Return what a model makes of images; None if it reads text only."""
    family, vision = checkpoint.family, checkpoint.config.vision
    if vision is None or family.image_prompt is None:
        return None
    style = ImageFormat(family.image_prompt, vision.tokens, tokenizer)
    return ImageReader(style, vision.image_size, family.resampling(checkpoint.format))


def lora_shapes(config: Config, recipe: Recipe) -> lora.Adapters:
    """Return the shapes of low-rank updates, of which every device of a mesh has a copy."""

    def describe(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding.replicated())

    return jax.tree.map(describe, jax.eval_shape(lambda: lora.init(config, recipe.rank, recipe.seed)))


def weight_shapes(config: Config, dtype: str, *, tower: bool = False) -> StackedWeights:
    """Return the shapes of stacked weights in a dtype, with their shardings in a mesh; with the tower or without."""

    def describe(_: str, spec: ParamSpec) -> jax.ShapeDtypeStruct:
        place = sharding.sharding_of(spec.axes, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, np.dtype(dtype), sharding=place)

    return tree.map_with_path(describe, stacked_specs(config, tower))
