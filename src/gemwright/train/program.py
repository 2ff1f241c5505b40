"""The compiled programs of a run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemwright.data import Batch
from gemwright.model.config import Config
from gemwright.model.stack import StackedWeights
from gemwright.runtime import heap
from gemwright.train.recipe import Recipe
from gemwright.train.step import Measures, Sequences, TrainState, make_assemble, sum_losses, take_step

Step = Callable[[TrainState, StackedWeights | None, Sequences], tuple[TrainState, Measures]]
CPU_OPTIONS = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
"""Without it, XLA computes the activations of many layers again before it uses any: three times the memory."""


def compile_step(
    config: Config,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: StackedWeights | None,
) -> Step:
    """Compile one step, which takes over the memory of the state."""
    function = functools.partial(take_step, config, recipe, optimizer)
    shape = recipe.batch_size, recipe.length
    batch = Sequences(*(jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, jnp.int32, bool, jnp.int32)))
    compiled = jax.jit(function, donate_argnums=0).lower(state, frozen, batch).compile(_options())
    heap.trim()
    return compiled


def _options() -> dict[str, Any] | None:
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


def to_device(batch: Batch) -> Sequences:
    """Copy a batch to the device."""
    return Sequences(*(jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.learned, batch.segments)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _held_out(
    config: Config, recipe: Recipe, trained: Any, frozen: StackedWeights | None, batch: Sequences
) -> jax.Array:
    return sum_losses(config, make_assemble(recipe)(trained, frozen), batch, recipe.remat)


def evaluate(
    config: Config, recipe: Recipe, trained: Any, frozen: StackedWeights | None, batches: list[Batch]
) -> float:
    """Return the mean loss of the labelled tokens of held-out batches."""
    total = sum(float(_held_out(config, recipe, trained, frozen, to_device(batch))) for batch in batches)
    return total / sum(int(np.sum(batch.learned)) for batch in batches)
