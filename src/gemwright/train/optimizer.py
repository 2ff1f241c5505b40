"""The optimizer of a recipe, made of optax's."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemwright import tree
from gemwright.train.recipe import Recipe


def learning_rate(recipe: Recipe, steps: int) -> optax.Schedule:
    """Return the learning rate of each step."""
    peak, warmup = recipe.peak_learning_rate, max(1, round(recipe.warmup * steps))
    if recipe.schedule == "constant":
        return optax.linear_schedule(peak / warmup, peak, warmup - 1)
    if recipe.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup, max(steps, warmup + 1), peak / 10)
    cooldown = max(1, round(recipe.cooldown * steps))

    def rsqrt(step: Any) -> Any:
        rate = peak * jnp.minimum((step + 1) / warmup, jnp.sqrt(warmup / jnp.maximum(step + 1, warmup)))
        return rate * jnp.clip((steps - step) / cooldown, 0.0, 1.0)

    return rsqrt


def make_optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of a run of so many steps; gradients are clipped by their norm first."""
    rate = learning_rate(recipe, steps)
    if recipe.optimizer == "adafactor":
        update = optax.adafactor(rate, multiply_by_parameter_scale=False)
    else:
        update = optax.adamw(rate, weight_decay=recipe.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(recipe.clip), update)


def decayed(trained: Any) -> Any:
    """Return whether weight decay applies to each leaf: to matrices, not to gains, biases or the RG-LRU."""

    def is_matrix(path: str, leaf: jax.Array) -> bool:
        stacked = path.startswith("stages.")
        return leaf.ndim - stacked > 1 and not path.endswith(("_gate", "conv"))

    return tree.map_with_path(is_matrix, trained)
