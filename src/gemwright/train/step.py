"""One step: the loss and its gradient over the sequences of a batch, and the optimizer's update."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemwright import sharding, tree
from gemwright.model.config import Config
from gemwright.train.objectives.objective import NEXT_TOKEN, Objective, Sequences, Sums
from gemwright.train.recipe import Recipe
from gemwright.typing import Array, Float, Int


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
    """Measures of one step: the mean loss and other means, and the gradient's norm before clipping.

    A loss or norm that is not finite leaves the weights unchanged.
    """

    loss: Float[Array, ""]
    norm: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


def start(optimizer: optax.GradientTransformation, trained: Any, recipe: Recipe) -> TrainState:
    """Return the state before the first step."""
    average = None if recipe.ema is None else jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(0), trained, optimizer.init(trained), average)


def place_start(optimizer: optax.GradientTransformation, trained: Any, recipe: Recipe, like: TrainState) -> TrainState:
    """Return the state before the first step, with the shardings of `like`."""
    if sharding.replicated() is None:
        return start(optimizer, trained, recipe)
    shardings = jax.tree.map(operator.attrgetter("sharding"), like)
    return jax.jit(functools.partial(start, optimizer, recipe=recipe), out_shardings=shardings)(trained)


def describe_state(optimizer: optax.GradientTransformation, trained: Any, recipe: Recipe) -> TrainState:
    """Return the shapes, dtypes and shardings of the state before the first step.

    Args:
        optimizer: The optimizer.
        trained: Shapes, dtypes and shardings of the trained weights, which the optimizer's moments have, too.
        recipe: The settings.
    """
    state = jax.eval_shape(functools.partial(start, optimizer, recipe=recipe), trained)
    weights = tree.flatten(trained)

    def describe(path: str, leaf: Any) -> Any:
        parts = path.split(".")  # a moment has the path of its weight, after that of the optimizer's part
        names = (".".join(parts[i:]) for i in range(len(parts)))
        weight = next((weights[name] for name in names if name in weights), None)
        is_like = weight is not None and weight.shape == leaf.shape
        place = weight.sharding if weight is not None and is_like else sharding.replicated()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return tree.map_with_path(describe, state)


def take_step(
    config: Config,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: Any,
    batch: Sequences,
    objective: Objective = NEXT_TOKEN,
) -> tuple[TrainState, Measures]:
    """Take one step; to be jitted with all but the state, the frozen weights and the batch static."""
    sums, gradient = accumulate(config, recipe, state.trained, frozen, batch, objective)
    scale = 1.0 / jnp.maximum(sums.count, 1).astype(jnp.float32)
    gradient, means, metrics = jax.tree.map(functools.partial(jnp.multiply, scale), (gradient, sums.loss, sums.metrics))
    measures = Measures(means, optax.tree.norm(gradient), metrics)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    average = state.average
    if recipe.ema is not None:
        average = optax.incremental_update(trained, average, 1 - recipe.ema)
    after = TrainState(state.step + 1, trained, optimizer_state, average)
    finite = jnp.isfinite(measures.loss) & jnp.isfinite(measures.norm)
    return jax.tree.map(functools.partial(jnp.where, finite), after, state), measures


def accumulate(
    config: Config, recipe: Recipe, trained: Any, frozen: Any, batch: Sequences, objective: Objective = NEXT_TOKEN
) -> tuple[Sums, Any]:
    """Return the sums of a batch and the gradient of the loss, computed on some sequences at a time."""

    def differentiate(part: Sequences) -> tuple[Sums, Any]:
        def lose(trained: Any) -> tuple[Array, Sums]:
            sums = objective.sum_losses(config, recipe, trained, frozen, part)
            return sums.loss, sums

        gradient, sums = jax.grad(lose, has_aux=True)(trained)
        return sums, gradient

    if recipe.accumulation == 1:
        return differentiate(batch)

    def divide(leaf: Array) -> Array:
        return leaf.reshape(recipe.accumulation, -1, *leaf.shape[1:])

    parts = jax.tree.map(divide, batch)
    shapes = jax.eval_shape(differentiate, jax.tree.map(operator.itemgetter(0), parts))
    zeros = jax.tree.map(jnp.zeros_like, shapes)

    def add(carry: tuple[Sums, Any], part: Sequences) -> tuple[tuple[Sums, Any], None]:
        return jax.tree.map(jnp.add, carry, differentiate(part)), None

    return jax.lax.scan(add, zeros, parts)[0]
