"""Low-rank updates of the linear maps of layers (arXiv:2106.09685)."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree
from gemwright.model.config import Config
from gemwright.model.params import ParamSpec
from gemwright.model.stack import Layout, StackedWeights, layout_of, make_layout, stacked_specs
from gemwright.typing import Array
from gemwright.weights import LoraTensor, WeightLeaf

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
    """Return the weights with updates, `scale * b a` of each matrix; the factors get the dtype of activations.

    The layers of the weights may be stacked in another way than the factors, if the formats of layers differ.
    """
    dtype = params.embed.dtype
    scaled = {path: Factors(of.a.astype(dtype), (of.b * scale).astype(dtype)) for path, of in adapters.items()}
    if layout_of(params) != _layout_of(adapters):
        scaled = _rearrange(scaled, layout_of(params))

    def update(path: str, leaf: Any) -> Any:
        return LoraTensor(leaf, scaled[path].a, scaled[path].b, None) if path in scaled else leaf

    def is_weight(leaf: object) -> bool:
        return isinstance(leaf, jax.Array | WeightLeaf)

    return tree.map_with_path(update, params, is_weight)


def _layout_of(adapters: Adapters) -> Layout:
    """Return which layers are stacked in some factors."""
    repeats = {_split(path)[:2]: len(factors.a) for path, factors in adapters.items()}
    periods = [len(list(group)) for _, group in itertools.groupby(sorted(repeats), key=lambda place: place[0])]
    return make_layout([(period, repeats[s, 0]) for s, period in enumerate(periods)])


def _rearrange(adapters: Adapters, wanted: Layout) -> Adapters:
    """Return factors stacked in another way."""
    own, single = _layout_of(adapters), dict[tuple[int, str], Factors]()
    for path, factors in adapters.items():
        s, i, name = _split(path)
        for repeat, number in enumerate(own[s][i]):
            single[number, name] = Factors(factors.a[repeat], factors.b[repeat])
    found: Adapters = {}
    for s, stage in enumerate(wanted):
        for i, numbers in enumerate(stage):
            for name in [name for number, name in single if number == numbers[0]]:
                group = [single[number, name] for number in numbers]
                a, b = jnp.stack([factors.a for factors in group]), jnp.stack([factors.b for factors in group])
                found[f"stages.{s}.{i}.{name}"] = Factors(a, b)
    return found


def _split(path: str) -> tuple[int, int, str]:
    """Return (1, 2, `mixer.q`) of the path `stages.1.2.mixer.q`."""
    _, s, i, name = path.split(".", 3)
    return int(s), int(i), name
