"""A reward model: a model whose last token gives a score, trained on pairs of answers (arXiv:2203.02155, 3.5)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree
from gemwright.checkpoint.configs.huggingface import require_reward_class
from gemwright.checkpoint.open import Checkpoint
from gemwright.data import Dataset
from gemwright.loading.model import make_chat_template
from gemwright.model import stack
from gemwright.model.config import Config
from gemwright.model.stack import StackedWeights
from gemwright.text.tokenizer import Tokenizer
from gemwright.train.objectives.objective import Sequences, Sums
from gemwright.train.objectives.preference import Preference, compare, find_pairs, sum_answers
from gemwright.train.recipe import Recipe
from gemwright.train.result import write_result
from gemwright.typing import Array, Float

if TYPE_CHECKING:
    from gemwright.train.prepare import Run


@tree.node
class RewardWeights:
    """The trained weights of a reward model: adapters or all weights, and the head."""

    body: Any
    score: Float[Array, "1 D"]


@dataclass(frozen=True)
class Reward(Preference):
    """The score of the last token of the chosen answer is higher than that of the rejected one (Bradley-Terry)."""

    name: ClassVar[str] = "reward"
    scored: ClassVar[bool] = True

    def read(
        self, paths: str | Path | Iterable[str | Path], checkpoint: Checkpoint, tokenizer: Tokenizer, recipe: Recipe,
        chat: bool | None,
    ) -> Dataset:  # fmt: skip
        """Read pairs of answers, for a model of which there is a reward model; see `Objective.read`."""
        require_reward_class(checkpoint.config)
        return super().read(paths, checkpoint, tokenizer, recipe, chat)

    def trained_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return the shapes of the trained weights."""
        score = jax.ShapeDtypeStruct((1, checkpoint.config.width), np.dtype(np.float32))
        return RewardWeights(super().trained_shapes(recipe, checkpoint), score)  # pyright: ignore

    def load_trained(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Load or initialize the trained weights; the head begins with zeros, so all scores do."""
        return RewardWeights(super().load_trained(recipe, checkpoint), jnp.zeros((1, checkpoint.config.width)))

    def assemble(self, recipe: Recipe, trained: Any, frozen: Any) -> StackedWeights:
        """Return the weights of the forward pass, without the head."""
        return super().assemble(recipe, trained.body, frozen)

    def sum_losses(self, config: Config, recipe: Recipe, trained: Any, frozen: Any, batch: Sequences) -> Sums:
        """Return the loss of a batch of pairs and, as metrics, how often and by how much the chosen answer is ahead."""
        params = self.assemble(recipe, trained, frozen)
        hidden = stack.forward(config, params, batch.tokens, batch.segments, remat=recipe.remat)
        scores = jnp.where(batch.learned, hidden.astype(jnp.float32) @ trained.score[0], 0.0)
        return compare(sum_answers(scores, batch), find_pairs(batch))

    def write(self, run: "Run", trained: Any) -> Path:
        """Write the reward model, for text only, and return its folder."""
        checkpoint = run.checkpoint
        if run.recipe.method == "full":
            checkpoint = replace(checkpoint, config=replace(checkpoint.config, vision=None))
        template = make_chat_template(run.checkpoint, run.tokenizer) if run.dataset.form == "chat" else None
        score = np.asarray(trained.score, np.float32)
        return write_result(run.out, run.name, checkpoint, template, run.recipe, trained.body, score)
