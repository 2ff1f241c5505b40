"""One step: the loss and its gradient over the sequences of a batch, and the optimizer's update."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from gemwright import tree
from gemwright.model import loss, stack
from gemwright.model.config import Config
from gemwright.model.stack import Remat, StackedWeights
from gemwright.train import lora
from gemwright.train.recipe import Recipe
from gemwright.typing import Array, Bool, Float, Int

Assemble: TypeAlias = Callable[[Any, StackedWeights | None], StackedWeights]
"""Returns the weights of the forward pass, from the trained and the frozen ones."""


@tree.node
class Sequences:
    """Packed documents, as `gemwright.data.Batch`, on the device."""

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    learned: Bool[Array, "B T"]
    segments: Int[Array, "B T"]


@tree.node
class TrainState:
    """All that changes in a run.

    Attributes:
        step: Number of steps taken.
        trained: The trained weights: adapters or all weights, float32.
        optimizer: The optimizer's state.
        average: The average of the trained weights; None for none.
    """

    step: Int[Array, ""]
    trained: Any
    optimizer: Any
    average: Any


@tree.node
class Measures:
    """Measures of one step: the mean loss of labeled tokens, their number, and the gradient's norm before clipping.

    A loss or norm that is not finite leaves the weights unchanged.
    """

    loss: Float[Array, ""]
    learned: Int[Array, ""]
    norm: Float[Array, ""]


def make_assemble(recipe: Recipe) -> Assemble:
    """Return how a recipe's trained weights and the frozen ones become the weights of the forward pass."""
    dtype = jnp.dtype(recipe.dtype)

    def rounded(leaf: Array) -> Array:
        return leaf.astype(dtype)

    def assemble(trained: Any, frozen: StackedWeights | None) -> StackedWeights:
        if recipe.method == "full":
            return jax.tree.map(rounded, trained)
        assert frozen is not None
        return lora.attach(frozen, trained, recipe.alpha / recipe.rank)

    return assemble


def sum_losses(config: Config, params: StackedWeights, batch: Sequences, remat: Remat) -> Float[Array, ""]:
    """Return the sum of the losses of all labeled tokens."""
    hidden = stack.forward(config, params, batch.tokens, batch.segments, remat=remat)
    head = params.embed if params.head is None else params.head
    flat = hidden.reshape(-1, hidden.shape[-1])
    return loss.cross_entropy(config, head, flat, batch.targets.reshape(-1), batch.learned.reshape(-1))


def start(optimizer: optax.GradientTransformation, trained: Any, recipe: Recipe) -> TrainState:
    """Return the state before the first step."""
    average = None if recipe.ema is None else jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(0), trained, optimizer.init(trained), average)


def take_step(
    config: Config,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: StackedWeights | None,
    batch: Sequences,
) -> tuple[TrainState, Measures]:
    """Take one step; to be jitted with the first three arguments static and the state donated."""
    count = jnp.sum(batch.learned, dtype=jnp.int32)
    total, gradient = accumulate(config, recipe, state.trained, frozen, batch)
    scale = 1.0 / jnp.maximum(count, 1).astype(jnp.float32)
    gradient = jax.tree.map(functools.partial(jnp.multiply, scale), gradient)
    measures = Measures(total * scale, count, optax.tree.norm(gradient))
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    average = state.average
    if recipe.ema is not None:
        average = optax.incremental_update(trained, average, 1 - recipe.ema)
    after = TrainState(state.step + 1, trained, optimizer_state, average)
    finite = jnp.isfinite(measures.loss) & jnp.isfinite(measures.norm)
    return jax.tree.map(functools.partial(jnp.where, finite), after, state), measures


def accumulate(
    config: Config, recipe: Recipe, trained: Any, frozen: StackedWeights | None, batch: Sequences
) -> tuple[Array, Any]:
    """Return the sum of the losses of a batch and its gradient, computed on some sequences at a time."""
    assemble = make_assemble(recipe)

    @jax.value_and_grad
    def differentiate(trained: Any, part: Sequences) -> Array:
        return sum_losses(config, assemble(trained, frozen), part, recipe.remat)

    if recipe.accumulation == 1:
        return differentiate(trained, batch)

    def divide(leaf: Array) -> Array:
        return leaf.reshape(recipe.accumulation, -1, *leaf.shape[1:])

    parts = jax.tree.map(divide, batch)
    zeros = jax.tree.map(jnp.zeros_like, trained)

    def add(carry: tuple[Array, Any], part: Sequences) -> tuple[tuple[Array, Any], None]:
        return jax.tree.map(jnp.add, carry, differentiate(trained, part)), None

    return jax.lax.scan(add, (jnp.float32(0), zeros), parts)[0]
