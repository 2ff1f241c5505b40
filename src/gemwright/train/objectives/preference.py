"""Objectives over pairs of answers, of which one was preferred: what they share, and DPO (arXiv:2305.18290)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gemwright.checkpoint.open import Checkpoint
from gemwright.data import Batches, Dataset
from gemwright.data.preferences import open_preferences
from gemwright.errors import DataError
from gemwright.loading.model import make_chat_template
from gemwright.model.config import Config
from gemwright.text.tokenizer import Tokenizer
from gemwright.train.load import load_stacked
from gemwright.train.objectives.objective import Objective, Sequences, Sums, token_logprobs, weight_shapes
from gemwright.train.recipe import Recipe, check_number
from gemwright.typing import Array, Bool, Float

ROUNDING = 1e-4
"""Rewards that differ by less count as equal."""


@dataclass(frozen=True)
class Preference(Objective):
    """The likelihood that the chosen answer is preferred, by the difference of the rewards of both (Bradley-Terry)."""

    scored: ClassVar[bool]
    """Whether the last token of each answer is read, too."""

    def read(
        self, paths: str | Path | Iterable[str | Path], checkpoint: Checkpoint, tokenizer: Tokenizer, recipe: Recipe,
        chat: bool | None,
    ) -> Dataset:  # fmt: skip
        """Read pairs of answers; see `Objective.read`."""
        template, tuned = make_chat_template(checkpoint, tokenizer), bool(checkpoint.chat_templates)
        length, scored = recipe.length, self.scored
        return open_preferences(paths, tokenizer, template, max_length=length, chat=chat, tuned=tuned, scored=scored)

    def pack(self, dataset: Dataset, recipe: Recipe, epochs: int = 1) -> Batches:
        """Return the batches of some epochs; see `Objective.pack`.

        Raises:
            DataError: The data are not pairs.
        """
        if dataset.group != 2:
            raise DataError(f"The objective {self.name} learns from pairs of answers; leave out data of another kind.")
        return super().pack(dataset, recipe, epochs)


@dataclass(frozen=True)
class Dpo(Preference):
    """Direct preference optimization (arXiv:2305.18290).

    The reward of an answer is beta * (log p(answer) - log p_reference(answer)), of which the reference is the model
    before the training: the frozen weights of LoRA, or a copy if all weights are trained.

    Attributes:
        beta: Factor of the reward; the higher, the closer the model stays to the reference.
    """

    name: ClassVar[str] = "dpo"
    scored: ClassVar[bool] = False
    beta: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            GemwrightError: One is not valid.
        """
        check_number("beta", self.beta, above=0.0)

    def frozen_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return the shapes of the frozen weights, which are those of the reference."""
        if recipe.method == "full":
            return weight_shapes(checkpoint.config, recipe.dtype)
        return super().frozen_shapes(recipe, checkpoint)

    def load_frozen(self, recipe: Recipe, checkpoint: Checkpoint, shapes: Any) -> Any:
        """Load the frozen weights; see `Objective.load_frozen`."""
        if recipe.method == "full":
            return load_stacked(checkpoint, recipe.dtype)
        return super().load_frozen(recipe, checkpoint, shapes)

    def sum_losses(self, config: Config, recipe: Recipe, trained: Any, frozen: Any, batch: Sequences) -> Sums:
        """Return the loss of a batch of pairs and, as metrics, see docs/preferences.md, those of the rewards."""
        policy = token_logprobs(config, self.assemble(recipe, trained, frozen), batch, recipe.remat)
        ratios = policy - token_logprobs(config, frozen, batch, recipe.remat)
        likelihoods = sum_answers(policy, batch)
        others = {
            "likelier": how_often(likelihoods[:, :, 0] - likelihoods[:, :, 1]),
            "kl": jnp.mean(sum_answers(ratios**2 / 2, batch), axis=-1),  # k2 of joschu.net/blog/kl-approx.html
        }
        return compare(self.beta * sum_answers(ratios, batch), find_pairs(batch), **others)


def sum_answers(values: Float[Array, "B T"], batch: Sequences) -> Float[Array, "B P 2"]:
    """Return the sum over the tokens of each answer of a row's pairs: chosen and rejected; 0 where there is no pair."""
    count = batch.tokens.shape[1] // 2 * 2 + 1  # the most answers, after the padding

    def sum_row(values: Array, segments: Array) -> Array:
        return jax.ops.segment_sum(values, segments, count)[1:]

    return jax.vmap(sum_row)(values, batch.segments).reshape(len(values), -1, 2)


def find_pairs(batch: Sequences) -> Bool[Array, "B P"]:
    """Return where `sum_answers` has a pair."""
    return sum_answers(jnp.asarray(batch.segments > 0, jnp.float32), batch)[:, :, 0] > 0


def compare(rewards: Float[Array, "B P 2"], pairs: Bool[Array, "B P"], **others: Float[Array, "B P"]) -> Sums:
    """Return the sum of -log sigmoid(chosen - rejected) over pairs.

    Its metrics are how often the chosen answer has the higher reward, by how much, and the sums of others.
    """
    margin = rewards[:, :, 0] - rewards[:, :, 1]
    measures = {"accuracy": how_often(margin), "margin": margin, **others}

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(pairs, values, 0.0))

    metrics = {name: total(jax.lax.stop_gradient(values)) for name, values in measures.items()}
    return Sums(total(jax.nn.softplus(-margin)), jnp.sum(pairs, dtype=jnp.int32), metrics)


def how_often(margin: Float[Array, "B P"]) -> Float[Array, "B P"]:
    """Return 1 where the chosen answer is ahead, 0 where it is behind, and half where both are equal."""
    return jnp.where(jnp.abs(margin) < ROUNDING, 0.5, jnp.asarray(margin > 0, jnp.float32))
