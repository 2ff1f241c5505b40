"""The compiled programs of a run. They are compiled for shapes and dtypes, before any weight is in memory."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
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
from gemwright.train.step import Sequences, TrainState, make_assemble, sum_losses, take_step
from gemwright.typing import Array

CPU_OPTIONS = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
"""Without it, XLA computes the activations of many layers again before it uses any: three times the memory."""


@dataclass(frozen=True)
class Programs:
    """The compiled programs of a run: `take_step(state, frozen, batch)` and the loss of `(trained, frozen, batch)`."""

    step: jax.stages.Compiled
    evaluation: jax.stages.Compiled | None


def compile_programs(
    config: Config,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: StackedWeights | None,
    evaluates: bool,
) -> Programs:
    """Compile the programs of a run; arguments as for `compile_step`, and whether held-out data are evaluated."""
    step = compile_step(config, recipe, optimizer, state, frozen)
    return Programs(step, compile_evaluation(config, recipe, state.trained, frozen) if evaluates else None)


def compile_step(
    config: Config,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: StackedWeights | None,
) -> jax.stages.Compiled:
    """Compile `take_step(state, frozen, batch)`, which takes over the memory of the state.

    Args:
        config: The model.
        recipe: The settings.
        optimizer: The optimizer.
        state: The state, or its shapes and dtypes.
        frozen: The frozen weights, or their shapes and dtypes.
    """
    function = functools.partial(take_step, config, recipe, optimizer)
    return _compile(jax.jit(function, donate_argnums=0), state, frozen, _batch_shapes(recipe))


def compile_evaluation(
    config: Config, recipe: Recipe, trained: Any, frozen: StackedWeights | None
) -> jax.stages.Compiled:
    """Compile `sum_losses` of `(trained, frozen, batch)`; arguments as for `compile_step`."""
    assemble = make_assemble(recipe)

    def evaluate(trained: Any, frozen: StackedWeights | None, batch: Sequences) -> Array:
        return sum_losses(config, assemble(trained, frozen), batch, recipe.remat)

    return _compile(jax.jit(evaluate), trained, frozen, _batch_shapes(recipe))


def _batch_shapes(recipe: Recipe) -> Sequences:
    shape = recipe.batch_size, recipe.length
    return Sequences(*(jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, jnp.int32, bool, jnp.int32)))  # pyright: ignore


def _compile(function: Any, *arguments: Any) -> jax.stages.Compiled:
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
    compiled = function.lower(*arguments).compile(options)
    heap.trim()
    return compiled


def to_device(batch: Batch) -> Sequences:
    """Copy a batch to the device."""
    return Sequences(*(jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.learned, batch.segments)))


def evaluate(
    compiled: jax.stages.Compiled | None, trained: Any, frozen: StackedWeights | None, batches: Iterable[Batch]
) -> float:
    """Return the mean loss of the labeled tokens of batches.

    Args:
        compiled: See `compile_evaluation`.
        trained: The trained weights.
        frozen: The frozen weights.
        batches: The batches, with a labeled token or more.
    """
    assert compiled is not None
    total, count = 0.0, 0
    for batch in batches:
        total += float(compiled(trained, frozen, to_device(batch)))
        count += int(np.sum(batch.learned))
    return total / count
