"""Low-rank updates of the linear maps of layers (arXiv:2106.09685)."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree
from gemwright.model.config import Config
from gemwright.model.params import ParamSpec
from gemwright.model.stack import StackedWeights, stacked_specs
from gemwright.typing import Array
from gemwright.weights import LoraTensor

INPUT_AXES: Mapping[str, int] = {"o": 2}
"""Number of axes that a linear map contracts, by its name, if it is not one."""


@tree.node
class Factors:
    """The factors of the update `b a` of one matrix: a [repeats, rank, in], b [repeats, out, rank]."""

    a: Array
    b: Array


Adapters = dict[str, Factors]
"""Factors by path in `StackedWeights`."""


def targets(config: Config) -> dict[str, tuple[int, int, int]]:
    """Return the repeats, outputs and inputs of every linear map of the layers, by path in `StackedWeights`."""
    found: dict[str, tuple[int, int, int]] = {}
    for path, spec in tree.flatten(stacked_specs(config)).items():
        assert isinstance(spec, ParamSpec)
        if path.startswith("stages.") and spec.linear:
            contracted = INPUT_AXES.get(path.rpartition(".")[2], 1)
            shape = spec.shape[1:]
            split = len(shape) - contracted
            found[path] = spec.shape[0], math.prod(shape[:split]), math.prod(shape[split:])
    return found


def init(config: Config, rank: int, seed: int) -> Adapters:
    """Return updates of zero: a is uniform in +-in^(-1/2), as in PEFT, and b is zero."""
    numbers = np.random.default_rng(seed)

    def start(repeats: int, outputs: int, inputs: int) -> Factors:
        a = numbers.uniform(-1, 1, (repeats, rank, inputs)) * inputs**-0.5
        return Factors(jnp.asarray(a, jnp.float32), jnp.zeros((repeats, outputs, rank), jnp.float32))

    return {path: start(*sizes) for path, sizes in targets(config).items()}


def attach(params: StackedWeights, adapters: Adapters, scale: float) -> StackedWeights:
    """Return the weights with updates, `scale * b a` of each matrix; the factors get the dtype of activations."""
    dtype = params.embed.dtype

    def update(path: str, leaf: object) -> object:
        if path not in adapters:
            return leaf
        factors = adapters[path]
        return LoraTensor(leaf, factors.a.astype(dtype), (factors.b * scale).astype(dtype), None)  # pyright: ignore[reportArgumentType]

    def is_weight(leaf: object) -> bool:
        return not isinstance(leaf, jax.Array) and hasattr(leaf, "matmul")

    return tree.map_with_path(update, params, is_weight)
