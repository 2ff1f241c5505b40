"""Policy gradients with rollouts from the engine: the objectives `reinforce` and `grpo`.

A step samples a group of replies to each of its prompts, computes their rewards, and takes one update on them, so that
the ratio of new to old probabilities is 1 and needs no clipping. The reference is the model before training.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.open import Checkpoint
from gemwright.data import Batch, Batches, Dataset, batches
from gemwright.data.prompts import Prompts, open_prompts
from gemwright.errors import GemwrightError
from gemwright.loading.model import make_chat_template
from gemwright.model.config import Config
from gemwright.model.stack import Remat, StackedWeights
from gemwright.text.tokenizer import Tokenizer
from gemwright.train.load import load_stacked
from gemwright.train.objectives.objective import Objective, Sequences, Sums, token_logprobs, weight_shapes
from gemwright.train.objectives.rewards import Reward, compute_rewards, digest, open_reward
from gemwright.train.objectives.rollouts import Rollouts, Sampler, seeds_of, tempered
from gemwright.train.program import to_device
from gemwright.train.recipe import Recipe
from gemwright.typing import Array, Float

if TYPE_CHECKING:
    from gemwright.train.prepare import Run

MEASURES: tuple[str, ...] = ("reward", "reward_spread", "length", "finished")
"""Measures of a reply: its reward, the standard deviation in its group, its tokens, and 1 if it ends by itself."""
LARGEST_RATIO = 3.0
"""Largest ratio of the trainer's probability of a token to the engine's, by which its gradient is multiplied."""
_SPREAD = 1e-4
"""Added to the standard deviation of a group's rewards."""


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """The mean reward of replies, less `beta` times their divergence from the model before training.

    Attributes:
        reward: A name of `gemwright.train.objectives.rewards.BUILT_IN`, or a Python file, which is executed.
        group: Number of replies to each prompt.
        max_tokens: Most tokens of a reply.
        temperature: Divides the logits of the distribution that is sampled and trained. No other filter applies.
        beta: Weight of the divergence; 0 for none.
    """

    reward: str = "number"
    group: int = 8
    max_tokens: int = 64
    temperature: float = 1.0
    beta: float = 0.04

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            GemwrightError: One is not valid.
        """
        for name, least in (("group", 2), ("max_tokens", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1 << 16:
                raise GemwrightError(f"{name} must be a whole number from {least} to {1 << 16:,}, got {value!r:.40}.")
        for name, positive in (("temperature", True), ("beta", False)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (positive and value == 0):
                raise GemwrightError(f"{name} must be a number {'above' if positive else 'of at least'} 0.")

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON, with the digest of the reward's file."""
        return {**asdict(self), "reward": digest(self.reward)}

    def read(
        self, paths: str | Path | Iterable[str | Path], checkpoint: Checkpoint, tokenizer: Tokenizer, recipe: Recipe,
        chat: bool | None,
    ) -> Dataset:  # fmt: skip
        """Read prompts; see `Objective.read`.

        Raises:
            DataError: They cannot be read, or do not leave room for replies.
            GemwrightError: The reward cannot be opened, or the group does not divide the batch.
        """
        open_reward(self.reward)
        if recipe.batch_size % self.group:
            raise GemwrightError(
                f"A group of {self.group} replies does not divide the batch size {recipe.batch_size}; choose a batch "
                "size that is a multiple of the group."
            )
        template, tuned = make_chat_template(checkpoint, tokenizer), bool(checkpoint.chat_templates)
        return open_prompts(
            paths, tokenizer, template,
            max_length=recipe.length, max_tokens=self.max_tokens, chat=chat, tuned=tuned,
        )  # fmt: skip

    def pack(self, dataset: Dataset, recipe: Recipe, epochs: int = 1) -> Batches:
        """Return batches of one prompt a row, of which a step takes one for each group.

        Raises:
            GemwrightError: The prompts are of several tables.
        """
        if not isinstance(dataset, Prompts):
            raise GemwrightError("The prompts are in several tables [[data]]; give one table a list of paths.")
        return batches(
            dataset,
            batch_size=recipe.batch_size // self.group,
            length=recipe.length,
            packing="none",
            seed=recipe.seed,
            epochs=epochs,
        )

    def extra_shapes(self, config: Config, recipe: Recipe) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of what `complete` adds to a batch."""
        del config
        size = recipe.batch_size
        shapes: dict[str, tuple[int, ...]] = {
            "advantages": (size,),
            "token_weights": (size, recipe.length),
            "sampled": (size, recipe.length),
            "measures": (size, len(MEASURES)),
        }
        if self.beta:
            shapes["reference"] = (size, recipe.length)
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def frozen_shapes(self, recipe: Recipe, checkpoint: Checkpoint) -> Any:
        """Return the shapes of the frozen weights; if all are trained, of the reference."""
        if recipe.method == "full" and self.beta:
            return weight_shapes(checkpoint.config, recipe.dtype)
        return super().frozen_shapes(recipe, checkpoint)

    def load_frozen(self, recipe: Recipe, checkpoint: Checkpoint, shapes: Any) -> Any:
        """Load the frozen weights; if all are trained, a copy of the model as the reference."""
        if recipe.method == "full" and self.beta:
            return load_stacked(checkpoint, recipe.dtype)
        return super().load_frozen(recipe, checkpoint, shapes)

    def complete(self, run: "Run", step: int, batch: Batch, trained: Any, frozen: Any) -> Batch:
        """Sample replies to the prompts of a batch, and return them with their rewards and advantages.

        Raises:
            DataError: A reward is not a finite number.
        """
        session = self._session(run, frozen)
        prompts, records, real = read_prompts(batch)
        seeds = seeds_of(run.recipe.seed, step, records, self.group)
        rollouts = session.sampler.roll_out(trained, prompts, self.group, seeds, self.max_tokens, session.stop_ids)
        rows = np.repeat(np.arange(len(prompts)), self.group)
        rewards = session.compute_rewards(run, rollouts, [records[row] for row in rows])
        full = fill_rows(prompts, rollouts, self.group, run.recipe.length, real)
        full = full._replace(records=np.repeat(batch.records, self.group, axis=0))
        sampled = to_targets(full.learned, rollouts)
        extras: dict[str, NDArray[Any]] = {"sampled": sampled}
        divergence = np.zeros(len(rows))
        if self.beta:
            reference = np.asarray(session.reference(frozen, to_device(full)))
            extras["reference"] = reference
            divergence = np.sum(sampled - reference, axis=1, where=full.learned)
        grouped = rewards.reshape(-1, self.group)
        extras["advantages"] = self.advantages(grouped, divergence.reshape(grouped.shape)).reshape(-1)
        replies = max(1, int(real.sum()) * self.group)
        extras["token_weights"] = full.learned * (replies / max(1, int(full.learned.sum())))
        spread = np.repeat(grouped.std(axis=1, ddof=1), self.group)
        measures = np.stack([rewards, spread, rollouts.lengths, rollouts.finished], axis=1)
        extras["measures"] = measures * np.any(full.learned, axis=1, keepdims=True)
        return full._replace(extras={name: value.astype(np.float32) for name, value in extras.items()})

    def advantages(self, rewards: NDArray[np.float64], divergence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the advantages of replies [prompts, group] from rewards and log(policy / reference) of each."""
        raise NotImplementedError

    def sum_losses(self, config: Config, recipe: Recipe, trained: Any, frozen: Any, batch: Sequences) -> Sums:
        """Return the loss of replies, and their measures; the loss is a mean over replies."""
        params = self.assemble(recipe, trained, frozen)
        logprobs = tempered_logprobs(config, params, batch, self.temperature, recipe.remat)
        learned, extras = batch.learned, batch.extras
        now = jax.lax.stop_gradient(logprobs)
        difference = jnp.where(learned, now - extras["sampled"], 0.0)
        ratio = jnp.minimum(jnp.exp(difference), LARGEST_RATIO)
        weights = extras["token_weights"]
        metrics: dict[str, Array] = dict(zip(MEASURES, jnp.sum(extras["measures"], axis=0), strict=True))
        divergence = jnp.zeros_like(logprobs)
        if self.beta:
            below = jnp.where(learned, extras["reference"] - logprobs, 0.0)
            divergence = jnp.exp(below) - below - 1.0
            metrics["kl"] = jnp.sum(weights * jax.lax.stop_gradient(divergence))
        metrics["entropy"] = -jnp.sum(weights * jnp.where(learned, extras["sampled"], 0.0))
        metrics["engine_difference"] = jnp.sum(weights * jnp.abs(difference))
        # Times one, but with the gradient of the log-probability.
        gain = jnp.where(learned, ratio * (logprobs - now), 0.0)
        total = self.combine(extras["advantages"], ratio, gain, divergence, weights)
        return Sums(total, jnp.sum(jnp.any(learned, axis=1), dtype=jnp.int32), metrics)

    def combine(
        self,
        advantages: Float[Array, " B"],
        ratio: Float[Array, "B T"],
        gain: Float[Array, "B T"],
        divergence: Float[Array, "B T"],
        weights: Float[Array, "B T"],
    ) -> Float[Array, ""]:
        """Return the sum of the losses of replies.

        Args:
            advantages: The advantage of each reply.
            ratio: Probability of each token now, relative to that with which it was sampled, truncated.
            gain: Zero, with the gradient of the log-probability times the ratio.
            divergence: Estimate of the divergence from the reference at each token, with its gradient.
            weights: Weight of each token: the number of replies divided by that of their tokens.
        """
        raise NotImplementedError

    def _session(self, run: "Run", frozen: Any) -> "_Session":
        found = self._sessions[-1] if self._sessions else None
        if found is None or found.frozen is not frozen or found.tokenizer is not run.tokenizer:
            self._sessions[:] = [found := _Session(self, run, frozen)]
        return found

    @functools.cached_property
    def _sessions(self) -> "list[_Session]":
        """The session of the newest run: the engine and the compiled reference, which steps share."""
        return []


@dataclass(frozen=True)
class Grpo(PolicyGradient):
    """Group relative policy optimization (arXiv:2402.03300), its loss a mean over all tokens of a step.

    The advantage of a reply is its reward less the mean of its group, divided by the group's standard deviation. The
    divergence is added to the loss of each token, by the estimate exp(-d) + d - 1 of d = log(policy / reference). The
    mean over the tokens of all replies alike is that of DAPO (arXiv:2503.14476), TRL's default.
    """

    name: ClassVar[str] = "grpo"

    def advantages(self, rewards: NDArray[np.float64], divergence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rewards in standard deviations above the mean of their group."""
        spread = rewards.std(axis=1, ddof=1, keepdims=True)
        return (rewards - rewards.mean(axis=1, keepdims=True)) / (spread + _SPREAD)

    def combine(
        self, advantages: Array, ratio: Array, gain: Array, divergence: Array, weights: Array
    ) -> Float[Array, ""]:
        """Return the sum over tokens of their weighted losses."""
        losses = -advantages[:, None] * (ratio + gain) + self.beta * divergence
        return jnp.sum(weights * losses)


@dataclass(frozen=True)
class Reinforce(PolicyGradient):
    """REINFORCE with a leave-one-out baseline (arXiv:2402.14740), its loss a mean over replies.

    The reward of a reply is first reduced by beta log(policy / reference) of the whole reply (arXiv:2406.16768). Its
    advantage is that less the mean of the others in its group.
    """

    name: ClassVar[str] = "reinforce"
    beta: float = 0.1

    def advantages(self, rewards: NDArray[np.float64], divergence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return adjusted rewards above the mean of the others in their group."""
        adjusted = rewards - self.beta * divergence
        others = (adjusted.sum(axis=1, keepdims=True) - adjusted) / (rewards.shape[1] - 1)
        return adjusted - others

    def combine(
        self, advantages: Array, ratio: Array, gain: Array, divergence: Array, weights: Array
    ) -> Float[Array, ""]:
        """Return the sum over replies of advantage times probability, relative to the probability now."""
        return -jnp.sum(advantages * jnp.exp(jnp.sum(gain, axis=1)))


class _Session:
    """What the steps of a run share."""

    def __init__(self, objective: PolicyGradient, run: "Run", frozen: Any):
        config, recipe = run.checkpoint.config, run.recipe
        self.frozen, self.tokenizer = frozen, run.tokenizer
        untrained = None if recipe.method == "full" else frozen
        self.sampler = Sampler(config, recipe, untrained, recipe.length + 1, objective.temperature)
        self.stop_ids = find_stop_ids(run)
        self._reward: Reward = open_reward(objective.reward)

        def reference(params: StackedWeights, batch: Sequences) -> Array:
            return tempered_logprobs(config, params, batch, objective.temperature, recipe.remat)

        self.reference = jax.jit(reference)

    def compute_rewards(self, run: "Run", rollouts: Rollouts, records: Sequence[int]) -> NDArray[np.float64]:
        """Return the reward of each reply; the stop id and ids without a piece are no part of its text."""
        dataset = run.dataset
        assert isinstance(dataset, Prompts)
        known = [
            [token for token in tokens[:length].tolist() if token < run.tokenizer.size and token not in self.stop_ids]
            for tokens, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
        ]
        completions = [run.tokenizer.decode(ids) for ids in known]
        prompts = [dataset.texts[record] for record in records]
        fields = [dataset.fields[record] for record in records]
        return np.array(compute_rewards(self._reward, prompts, completions, fields), np.float64)


def tempered_logprobs(
    config: Config, params: StackedWeights, batch: Sequences, temperature: float, remat: Remat
) -> Float[Array, "B T"]:
    """Return the log-probability of each learned target at a temperature, and 0 for others."""
    return token_logprobs(*tempered(config, params, temperature), batch, remat)


def find_stop_ids(run: "Run") -> tuple[int, ...]:
    """Return the ids that end a reply: those of the model, and that which ends a turn of a conversation."""
    ids = {run.tokenizer.eos_id, *run.checkpoint.stop_ids}
    if run.dataset.form == "chat":
        ids |= set(make_chat_template(run.checkpoint, run.tokenizer).end_ids)
    return tuple(sorted(ids))


def read_prompts(batch: Batch) -> tuple[list[list[int]], list[int], NDArray[np.bool_]]:
    """Return the ids and the record of the prompt of each row, and whether the row is real.

    A row of padding, at the end of an epoch, gets the prompt of another, so that all steps have the same shapes.
    """
    real = batch.records[:, 0] >= 0
    rows = np.flatnonzero(real)
    chosen = [int(row) if real[row] else int(rows[row % len(rows)]) for row in range(len(real))]
    ends = np.argmax(batch.learned, axis=1) + 1
    prompts = [batch.tokens[row, : ends[row]].tolist() for row in chosen]
    return prompts, [int(batch.records[row, 0]) for row in chosen], real


def fill_rows(
    prompts: Sequence[Sequence[int]], rollouts: Rollouts, group: int, length: int, real: NDArray[np.bool_]
) -> Batch:
    """Return a batch of one prompt and reply a row, of which the replies are learned unless the row is not real."""
    shape = len(rollouts.tokens), length
    tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
    learned = np.zeros(shape, bool)
    for row, size in enumerate(rollouts.lengths.tolist()):
        prompt = prompts[row // group]
        ids = [*prompt, *rollouts.tokens[row, :size].tolist()]
        tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1], segments[row, : len(ids) - 1] = ids[:-1], ids[1:], 1
        learned[row, len(prompt) - 1 : len(ids) - 1] = real[row // group]
    return Batch(tokens, targets, learned, segments, np.full(shape, -1, np.int32))


def to_targets(learned: NDArray[np.bool_], rollouts: Rollouts) -> NDArray[np.float32]:
    """Return the log-probabilities of replies [N, most] in the places of their targets [N, T]."""
    found = np.zeros(learned.shape, np.float32)
    for row in np.flatnonzero(learned.any(axis=1)).tolist():
        found[row, learned[row]] = rollouts.logprobs[row, : rollouts.lengths[row]]
    return found
