"""The optimizer of a recipe, made of optax's."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemwright import tree
from gemwright.model.stack import STACKED
from gemwright.train.recipe import Recipe
from gemwright.typing import Array

FLOOR = 0.1
"""Share of the peak learning rate at which the cosine ends."""
NOT_DECAYED = ("_bias", "_gate", "conv", "positions")
"""Ends of the names of matrices without weight decay: biases of blocks, gates and convolution of a recurrence, and the
positions of a vision tower."""


def learning_rate(recipe: Recipe, steps: int) -> optax.Schedule:
    """Return the learning rate of each step, counted from 0: the first is above zero, and the warm-up ends at the peak.

    The cosine ends at a tenth of the peak with the last step, and the cool-down at zero after it.
    """
    warmup, cooldown = (max(1, round(share * steps)) for share in (recipe.warmup, recipe.cooldown))

    def shape(step: Array) -> Array:
        """Return the learning rate after the warm-up, as a share of the peak."""
        if recipe.schedule == "constant":
            return jnp.ones_like(step)
        if recipe.schedule == "cosine":
            passed = jnp.clip((step + 1 - warmup) / max(1, steps - warmup), 0.0, 1.0)
            return FLOOR + (1 - FLOOR) * 0.5 * (1 + jnp.cos(jnp.pi * passed))
        falling = jnp.clip((steps - step) / (cooldown + 1), 0.0, 1.0)
        return jnp.sqrt(warmup / jnp.maximum(step + 1, warmup)) * falling

    def rate(count: Any) -> Array:
        step = jnp.asarray(count, jnp.float32)
        return recipe.peak_learning_rate * jnp.minimum((step + 1) / warmup, 1.0) * shape(step)

    return rate


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
        stacked = any(part in path for part in STACKED)
        return leaf.ndim - stacked > 1 and not path.endswith(NOT_DECAYED)

    return tree.map_with_path(is_matrix, trained)
