"""Distillation: a student learns the next-token distribution of a teacher, as Gemma 2 and Gemma 3 do.

Sources: arXiv:2408.00118 section 3.1, arXiv:2503.19786 section 2.2; see `gemwright.model.teacher`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from gemwright.checkpoint.digest import model_digest
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.vocabulary import require_same_tokens
from gemwright.data import Dataset
from gemwright.errors import GemwrightError
from gemwright.model import loss, stack
from gemwright.model.config import Config
from gemwright.model.stack import StackedWeights
from gemwright.model.teacher import Teacher, Weighting
from gemwright.text.tokenizer import Tokenizer
from gemwright.train.load import load_packed, load_stacked
from gemwright.train.objective import Objective, Sequences, Sums, weight_shapes
from gemwright.train.recipe import Recipe
from gemwright.typing import Array


@dataclass(frozen=True)
class Distill(Objective):
    """The cross-entropy with a teacher's next-token distribution, at the learned tokens.

    Attributes:
        teacher: A model of the same vocabulary, of any width and family: a path, name or hub id.
        samples: Number of vocabulary entries drawn at each token; None for the whole distribution.
        weighting: What a drawn entry counts; see `gemwright.model.teacher.weigh`.
        teacher_dtype: Dtype of the teacher's weights and activations, or `stored` for weights in their stored format.
    """

    name: ClassVar[str] = "distill"
    teacher: str
    samples: int | None = None
    weighting: Weighting = "draws"
    teacher_dtype: Literal["stored", "float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            GemwrightError: One is not valid.
        """
        if not isinstance(self.teacher, str) or not self.teacher:
            raise GemwrightError(f"teacher must be the path or name of a model, got {self.teacher!r:.40}.")
        whole = isinstance(self.samples, int) and not isinstance(self.samples, bool)
        if self.samples is not None and not (whole and 0 < self.samples <= 1 << 16):
            raise GemwrightError(
                f"samples must be a whole number from 1 to {1 << 16:,}, or left out, got {self.samples!r:.40}."
            )
        for name, choices in (
            ("weighting", ("draws", "probabilities")),
            ("teacher_dtype", ("stored", "float32", "bfloat16")),
        ):
            if getattr(self, name) not in choices:
                raise GemwrightError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r:.40}.")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The teacher."""
        return open_checkpoint(locate(self.teacher))

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON, and a digest of the teacher."""
        return {**super().document(), "digest": model_digest(self.checkpoint)}

    def read(
        self, paths: str | Path | Iterable[str | Path], checkpoint: Checkpoint, tokenizer: Tokenizer, recipe: Recipe,
        chat: bool | None,
    ) -> Dataset:  # fmt: skip
        """Read data, after comparing the vocabularies of teacher and student."""
        self._check_teacher(recipe, checkpoint)
        return super().read(paths, checkpoint, tokenizer, recipe, chat)

    def _check_teacher(self, recipe: Recipe, checkpoint: Checkpoint) -> None:
        teacher = self.checkpoint
        if recipe.length > teacher.config.max_length:
            raise GemwrightError(
                f"length {recipe.length:,} is more than the {teacher.config.max_length:,} tokens of the teacher "
                f"{self.teacher}; use a smaller length."
            )
        require_same_tokens(
            (str(checkpoint.path), checkpoint.vocabulary(), checkpoint.config.vocab),
            (f"the teacher {self.teacher}", teacher.vocabulary(), teacher.config.vocab),
        )

    def frozen_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return those of the student and of the teacher; a stored teacher is loaded, as only its file decides them."""
        self._check_teacher(recipe, checkpoint)  # source code is not read by `read`
        if self.teacher_dtype == "stored":
            teacher = load_packed(self.checkpoint)
        else:
            teacher = weight_shapes(self.checkpoint.config, self.teacher_dtype)
        return {"student": super().frozen_shapes(recipe, checkpoint), "teacher": teacher}

    def load_frozen(self, recipe: Recipe, checkpoint: Checkpoint, shapes: Any) -> Any:
        """Load the frozen weights of the student and those of the teacher."""
        teacher = shapes["teacher"]
        if self.teacher_dtype != "stored":
            teacher = load_stacked(self.checkpoint, self.teacher_dtype)
        return {"student": super().load_frozen(recipe, checkpoint, shapes["student"]), "teacher": teacher}

    def assemble(self, recipe: Recipe, trained: Any, frozen: Any) -> StackedWeights:
        """Return the student."""
        return super().assemble(recipe, trained, frozen["student"])

    def sum_losses(self, config: Config, recipe: Recipe, trained: Any, frozen: Any, batch: Sequences) -> Sums:
        """Return the cross-entropy with the teacher's distribution.

        The other measures are the divergence of the student from the teacher (KL), and the loss of the next tokens.
        """
        if not jax.sharding.get_abstract_mesh().empty:
            raise GemwrightError("Distillation runs on one device; leave out the mesh.")
        params = self.assemble(recipe, trained, frozen)
        hidden = stack.forward(config, params, batch.tokens, batch.segments, remat=recipe.remat)
        head = params.embed if params.head is None else params.head
        losses: Any = loss.distillation_loss(
            config,
            head,
            hidden.reshape(-1, hidden.shape[-1]),
            self._teach(frozen["teacher"], batch),
            batch.targets.reshape(-1),
            batch.learned.reshape(-1),
        )
        total, of_targets, entropy = losses
        metrics = {"divergence": total - entropy, "next-token loss": of_targets}
        return Sums(total, jnp.sum(batch.learned, dtype=jnp.int32), metrics)

    def _teach(self, params: StackedWeights, batch: Sequences) -> Teacher:
        """Return the teacher at the tokens of a batch."""
        config = self.checkpoint.config
        hidden = stack.forward(config, params, batch.tokens, batch.segments)
        head = params.embed if params.head is None else params.head
        uniform = jnp.zeros(batch.tokens.size)
        if self.samples is not None:
            key = jax.random.key(_digest(batch.tokens))
            uniform = jax.random.uniform(key, uniform.shape)
        return Teacher(hidden.reshape(-1, hidden.shape[-1]), head, uniform, config, self.samples, self.weighting)


def _digest(tokens: Array) -> Array:
    """Return a number of some tokens, so that a batch has the same draws whenever its step is taken."""
    places = jnp.arange(tokens.size, dtype=jnp.uint32)
    return jnp.sum((tokens.reshape(-1).astype(jnp.uint32) + 1) * (places * jnp.uint32(0x9E3779B1) + 1))
