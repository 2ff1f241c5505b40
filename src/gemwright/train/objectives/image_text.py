"""The objective of documents with images: those of a batch are soft tokens, and its mask is that of the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gemwright import sharding
from gemwright.checkpoint.open import Checkpoint
from gemwright.data import Dataset
from gemwright.errors import GemwrightError
from gemwright.families import ImagePrompt, find_family
from gemwright.model import stack
from gemwright.model.config import Config
from gemwright.model.stack import StackedWeights
from gemwright.model.transformer import SoftTokens
from gemwright.train.load import load_frozen, load_trained
from gemwright.train.objectives.objective import NEXT_TOKEN, Objective, Sequences, weight_shapes
from gemwright.train.recipe import Recipe
from gemwright.typing import Array, Bool, Int


@dataclass(frozen=True)
class ImageText(Objective):
    """The cross-entropy of the tokens that are learned, after images.

    Low-rank updates are those of the decoder, and the vision tower stays as it is; `full` trains both. In a prefix-LM,
    the tokens of a prompt attend to each other both ways (arXiv:2407.07726).

    Attributes:
        images: Number of images of a row of a batch; 0 for prompts of text.
    """

    name: ClassVar[str] = "image-text"
    images: int = 1

    @property
    def _has_tower(self) -> bool:
        return self.images > 0

    def extra_shapes(self, config: Config, recipe: Recipe) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shape and dtype of the images of a batch."""
        if not self._has_tower:
            return {}
        assert config.vision is not None
        side = config.vision.image_size
        return {"pixels": jax.ShapeDtypeStruct((recipe.batch_size, self.images, side, side, 3), jnp.float32)}

    def frozen_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return the shapes and dtypes of the frozen weights, or the weights if only their file decides them."""
        if recipe.method == "lora":
            return weight_shapes(checkpoint.config, recipe.dtype, tower=self._has_tower)
        return load_frozen(recipe, checkpoint, tower=self._has_tower)

    def load_frozen(self, recipe: Recipe, checkpoint: Checkpoint, shapes: Any) -> Any:
        """Load the frozen weights, unless `frozen_shapes` returned them."""
        return load_frozen(recipe, checkpoint, tower=self._has_tower) if recipe.method == "lora" else shapes

    def trained_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return the shapes and dtypes of the trained weights."""
        if recipe.method == "full":
            return weight_shapes(checkpoint.config, "float32", tower=self._has_tower)
        return super().trained_shapes(recipe, checkpoint)

    def load_trained(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Load or initialize the trained weights, float32."""
        return load_trained(recipe, checkpoint, tower=self._has_tower)

    def make_soft_tokens(
        self, config: Config, recipe: Recipe, params: StackedWeights, batch: Sequences
    ) -> SoftTokens | None:
        """Return the soft tokens of the images of a batch at their places, and the groups of its tokens."""
        groups = make_groups(config, batch.tokens, batch.learned, batch.segments)
        if not self._has_tower:
            return SoftTokens(jnp.zeros((*batch.tokens.shape, config.width), params.embed.dtype), groups)
        assert config.vision is not None
        assert params.vision is not None
        pixels = batch.extras["pixels"]
        rows = stack.encode(config.vision, params.vision, pixels.reshape(-1, *pixels.shape[2:]), recipe.remat)
        order = jnp.clip(jnp.cumsum(batch.tokens < 0, axis=1) - 1, 0)
        placed = jnp.take_along_axis(rows.reshape(len(pixels), -1, config.width), order[:, :, None], axis=1)
        return SoftTokens(sharding.constrain(placed, *stack.ACTIVATIONS), groups)


def make_groups(
    config: Config, tokens: Int[Array, "B T"], learned: Bool[Array, "B T"], segments: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Return the groups of `transformer.SoftTokens`.

    In a prefix-LM they are the prompts of documents, whose answers are learned; else each image is one.
    """
    style: ImagePrompt | None = find_family(config).image_prompt
    if style == "prefix":
        before = jnp.pad(learned, ((0, 0), (1, 0)))[:, :-1]
        is_first = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
        return jnp.where((segments > 0) & (is_first | ~before), segments, -1)
    assert config.vision is not None
    soft = tokens < 0
    return jnp.where(soft, (jnp.cumsum(soft, axis=1) - 1) // config.vision.tokens, -1)


def choose(
    objective: Objective, recipe: Recipe, checkpoint: Checkpoint, datasets: Sequence[Dataset], held_out: Dataset | None
) -> tuple[Objective, Recipe, list[Dataset], Dataset | None]:
    """Return the objective, the settings and the data of a run: with images, each document has its own row.

    Rows are then as long as the longest document. Next tokens of a prefix-LM are those after a prompt, with images or
    not.

    Args:
        objective: What is minimized.
        recipe: The settings.
        checkpoint: The model.
        datasets: The sources of the data.
        held_out: Held-out data, if there are any.

    Raises:
        GemwrightError: The objective is another, and does not support images.
    """
    every = [*datasets, *([] if held_out is None else [held_out])]
    images = [data.images for data in every if data.images is not None]
    if not images or objective != NEXT_TOKEN:
        if images:
            raise GemwrightError(f"The objective {objective.name} does not support images; use records of text.")
        is_prefix = checkpoint.family.image_prompt == "prefix" and all(data.form == "prompted" for data in every)
        chosen = ImageText(images=0) if is_prefix and objective == NEXT_TOKEN else objective
        return chosen, recipe, list(datasets), held_out
    most, none = max(each.most for each in images), replace(images[0], sources={}, places={}, digest="")

    def with_room(data: Dataset) -> Dataset:
        return replace(data, images=replace(data.images or none, most=most))

    recipe = replace(recipe, packing="none", length=max(data.statistics.longest for data in every) - 1)
    held_out = None if held_out is None else with_room(held_out)
    return ImageText(images=most), recipe, [with_room(data) for data in datasets], held_out
