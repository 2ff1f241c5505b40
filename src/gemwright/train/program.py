"""The compiled programs of a run. They are compiled for shapes and dtypes, before any weight is in memory."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemwright import sharding
from gemwright.data import Batch
from gemwright.model.config import Config
from gemwright.runtime import heap
from gemwright.train.objectives.objective import NEXT_TOKEN, Objective, Sequences, Sums
from gemwright.train.recipe import Recipe
from gemwright.train.step import TrainState, take_step

CPU_OPTIONS = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
"""Without it, XLA computes the activations of many layers again before it uses any: three times the memory."""


@dataclass(frozen=True)
class Programs:
    """The compiled programs of a run: `take_step(state, frozen, batch)` and the sums of `(trained, frozen, batch)`."""

    step: jax.stages.Compiled
    evaluation: jax.stages.Compiled | None


def compile_programs(
    config: Config,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: Any,
    objective: Objective,
    evaluates: bool,
) -> Programs:
    """Compile the programs of a run; arguments as for `compile_step`, and whether held-out data are evaluated."""
    step = compile_step(config, recipe, optimizer, state, frozen, objective)
    return Programs(step, compile_evaluation(config, recipe, state.trained, frozen, objective) if evaluates else None)


def compile_step(
    config: Config,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: Any,
    objective: Objective = NEXT_TOKEN,
) -> jax.stages.Compiled:
    """Compile `take_step(state, frozen, batch)`, which takes over the memory of the state.

    Args:
        config: The model.
        recipe: The settings.
        optimizer: The optimizer.
        state: The state, or its shapes and dtypes.
        frozen: The frozen weights, or their shapes and dtypes.
        objective: What is minimized.
    """
    function = functools.partial(take_step, config, recipe, optimizer, objective=objective)
    return _compile(jax.jit(function, donate_argnums=0), state, frozen, _batch_shapes(config, recipe, objective))


def compile_evaluation(
    config: Config, recipe: Recipe, trained: Any, frozen: Any, objective: Objective
) -> jax.stages.Compiled:
    """Compile the sums of `(trained, frozen, batch)`; arguments as for `compile_step`."""

    def evaluate(trained: Any, frozen: Any, batch: Sequences) -> Sums:
        return objective.sum_losses(config, recipe, trained, frozen, batch)

    return _compile(jax.jit(evaluate), trained, frozen, _batch_shapes(config, recipe, objective))


def _batch_shapes(config: Config, recipe: Recipe, objective: Objective) -> Sequences:
    shape = recipe.batch_size, recipe.length
    place = sharding.sharding_of(("batch", "length"), shape)
    kinds = (jnp.int32, jnp.int32, bool, jnp.int32)
    arrays: Any = [jax.ShapeDtypeStruct(shape, kind, sharding=place) for kind in kinds]
    extras: Any = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding.sharding_of(_axes(array), array.shape))
        for name, array in objective.extra_shapes(config, recipe).items()
    }
    return Sequences(*arrays, extras=extras)


def _axes(array: Any) -> tuple[str | None, ...]:
    """Return the names of the axes of an extra array."""
    return ("batch", *(None,) * (len(array.shape) - 1))


def _compile(function: Any, *arguments: Any) -> jax.stages.Compiled:
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
    compiled = function.lower(*arguments).compile(options)
    heap.trim()
    return compiled


def to_device(batch: Batch) -> Sequences:
    """Copy a batch to the device."""
    arrays = (batch.tokens, batch.targets, batch.learned, batch.segments)
    extras = {name: sharding.place(array, *_axes(array)) for name, array in batch.extras.items()}
    return Sequences(*(sharding.place(array, "batch", "length") for array in arrays), extras=extras)


def evaluate(
    compiled: jax.stages.Compiled | None, trained: Any, frozen: Any, batches: Iterable[Batch]
) -> tuple[float, Mapping[str, float]]:
    """Return the mean loss of batches, and the means of other measures by name.

    Args:
        compiled: See `compile_evaluation`.
        trained: The trained weights.
        frozen: The frozen weights.
        batches: The batches, with a labeled token or more.
    """
    assert compiled is not None
    total, count = 0.0, 0
    others = dict[str, float]()
    for batch in batches:
        sums: Sums = compiled(trained, frozen, to_device(batch))
        total += float(sums.loss)
        count += int(sums.count)
        others = {name: others.get(name, 0.0) + float(np.asarray(value)) for name, value in sums.metrics.items()}
    return total / count, {name: value / count for name, value in others.items()}
