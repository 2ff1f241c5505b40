"""The weights of repeated layers stacked along a leading axis, and a forward pass that scans over them.

Training uses it: the program does not grow with depth, and XLA's CPU backend frees the activations of a
rematerialized layer only inside a loop.
"""

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import linear, ops, sharding, tree
from gemwright.errors import GemwrightError
from gemwright.model import block, transformer, vision
from gemwright.model.config import Config, Layer, Vision
from gemwright.model.params import LayerWeights, ModelWeights, ParamSpec, VisionLayerWeights, VisionWeights, param_specs
from gemwright.model.transformer import SoftTokens
from gemwright.typing import Array, Float, Int
from gemwright.weights import Weight

T = TypeVar("T")
Remat: TypeAlias = Literal["none", "products", "layers"]
"""What a forward pass keeps for the gradient: everything, the results of linear maps, or the inputs of layers."""
POLICIES: Mapping[Remat, Callable[..., Any]] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.save_only_these_names(linear.PRODUCT),
    "layers": jax.checkpoint_policies.nothing_saveable,
}

ACTIVATIONS = ("batch", "length", None)
"""Names of the axes of activations [B, T, D]."""

Layout: TypeAlias = list[list[list[int]]]
"""Numbers of the layers that are stacked: of each stage, of each layer of its pattern, one for each repeat."""


@tree.node
class StackedWeights:
    """Weights as in `ModelWeights`, but the layers of each stage of the decoder stacked.

    A stage is a pattern of layers that is repeated, such as (local, global) x 13; `stages[s][i]` has the weights of its
    i-th layer, each with the repeats as its first axis. All layers of the tower are equal, so `vision.layers` has one
    entry, with the depth as first axis; `vision` is None where no image is trained on.
    """

    embed: Weight
    stages: tuple[tuple[LayerWeights, ...], ...]
    final_norm: Array
    head: Weight | None
    vision: VisionWeights | None = None


STACKED = ("stages.", "vision.layers.")
"""Beginnings of the paths in `StackedWeights` of leaves that have the repeats of a layer as their first axis."""


def layout(layers: Iterable[Any]) -> Layout:
    """Return which layers are stacked, those with equal entries.

    Each stage is the pattern, among those that begin with its first layer, whose repeats have the most layers. A layer
    that begins no repeated pattern is a stage of its own.
    """
    remaining, found = list(layers), list[tuple[int, int]]()
    while remaining:
        sizes = ((period, _repeats(remaining, period)) for period in range(1, len(remaining) // 2 + 1))
        repeated = (size for size in sizes if size[1] > 1)
        period, repeats = max(repeated, key=lambda size: size[0] * size[1], default=(1, 1))
        found.append((period, repeats))
        del remaining[: period * repeats]
    return make_layout(found)


def _repeats(layers: Sequence[Any], period: int) -> int:
    """Return how many times the first `period` layers follow each other."""
    equal = (layers[i] == layers[i % period] for i in range(period, len(layers)))
    return 1 + sum(1 for _ in itertools.takewhile(bool, equal)) // period


def make_layout(sizes: Iterable[tuple[int, int]]) -> Layout:
    """Return which layers are stacked, from the layers of each stage's pattern and its repeats."""
    first, found = 0, Layout()
    for period, repeats in sizes:
        stop = first + period * repeats
        found.append([list(range(first + i, stop, period)) for i in range(period)])
        first = stop
    return found


def layout_of(params: StackedWeights) -> Layout:
    """Return which layers are stacked in some weights."""
    return make_layout((len(stage), count_repeats(stage)) for stage in params.stages)


def stacked_paths(config: Config, tower: bool = False) -> dict[str, list[str]]:
    """Return the paths in `ModelWeights` of the leaves that are stacked, by path in `StackedWeights`.

    `stages.0.1.mixer.q` -> [`layers.1.mixer.q`, `layers.7.mixer.q`]; a leaf outside the layers has its own path. Those
    of the vision tower come last, if they are wanted.
    """
    specs = param_specs(config)
    paths = {path: [path] for path in tree.flatten(replace(specs, layers=(), vision=None))}
    for s, stage in enumerate(layout(config.layers)):
        for i, numbers in enumerate(stage):
            for path in tree.flatten(specs.layers[numbers[0]]):
                paths[f"stages.{s}.{i}.{path}"] = [f"layers.{n}.{path}" for n in numbers]
    if tower and specs.vision is not None:
        depth = len(specs.vision.layers)
        paths |= {f"vision.{path}": [f"vision.{path}"] for path in tree.flatten(replace(specs.vision, layers=()))}
        for path in tree.flatten(specs.vision.layers[0]):
            paths[f"vision.layers.0.{path}"] = [f"vision.layers.{n}.{path}" for n in range(depth)]
    return paths


def stacked_specs(config: Config, tower: bool = False) -> StackedWeights:
    """Return the abstract stacked weights of a model, with `ParamSpec` leaves; with its vision tower, if wanted."""
    specs = param_specs(config)

    def repeat(count: int, layer: T) -> T:
        def stacked(spec: ParamSpec) -> ParamSpec:
            return replace(spec, shape=(count, *spec.shape), axes=("repeats", *spec.axes))

        return jax.tree.map(stacked, layer)

    stages = tuple(tuple(repeat(len(same), specs.layers[same[0]]) for same in stage) for stage in layout(config.layers))
    found = specs.vision if tower else None
    if found is not None:
        found = replace(found, layers=(repeat(len(found.layers), found.layers[0]),))
    return StackedWeights(specs.embed, stages, specs.final_norm, specs.head, found)


def stack(config: Config, params: ModelWeights, tower: bool = False) -> StackedWeights:
    """Return the weights of a model stacked; layers of which a leaf differs in kind or encoding are not equal.

    The tower is left out unless it is wanted.

    Raises:
        GemwrightError: The tower is wanted and its layers differ in encoding.
    """
    keys = [(layer, jax.tree.structure(weights)) for layer, weights in zip(config.layers, params.layers, strict=True)]

    def join(layers: Sequence[T]) -> T:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

    stages = tuple(tuple(join([params.layers[n] for n in same]) for same in stage) for stage in layout(keys))
    found = params.vision if tower else None
    if found is not None:
        if len({jax.tree.structure(layer) for layer in found.layers}) > 1:
            raise GemwrightError("The layers of the vision tower have several formats; use another method than qlora.")
        found = replace(found, layers=(join(found.layers),))
    return StackedWeights(params.embed, stages, params.final_norm, params.head, found)


def unstack(params: StackedWeights) -> ModelWeights:
    """Return stacked weights layer by layer."""
    layers: list[LayerWeights] = []
    for stage in params.stages:
        for repeat in range(count_repeats(stage)):
            layers += [jax.tree.map(operator.itemgetter(repeat), layer) for layer in stage]
    tower = params.vision
    if tower is not None:
        depth = range(np.shape(tower.layers[0].mixer_norm)[0])
        each = tuple(jax.tree.map(operator.itemgetter(repeat), tower.layers[0]) for repeat in depth)
        tower = replace(tower, layers=each)
    return ModelWeights(params.embed, tuple(layers), params.final_norm, params.head, tower)


def count_repeats(stage: tuple[LayerWeights, ...]) -> int:
    """Return how many times the pattern of a stage is repeated."""
    return int(np.shape(stage[0].mixer_norm)[0])


def forward(
    config: Config,
    params: StackedWeights,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    soft_tokens: SoftTokens | None = None,
    remat: Remat = "layers",
) -> Float[Array, "B T D"]:
    """Run the decoder over packed documents, as `transformer.forward` does without a state.

    Args:
        config: The model.
        params: Its weights; activations have the dtype of the embedding.
        tokens: Token ids; negative for soft tokens.
        segments: The document of each token; 0 for padding.
        soft_tokens: Embeddings of images, if there are any.
        remat: What is kept for the gradient; the rest is computed again.

    Returns:
        The hidden states after the final norm.
    """
    positions = transformer.find_positions(tokens, None, segments > 0, segments, soft_tokens)
    table = params.embed
    if isinstance(table, jax.Array):  # in a mesh, every device looks up its own tokens in whole rows
        table = sharding.constrain(table, "vocab", None)
    x = sharding.constrain(transformer.embed(config, table, tokens, soft_tokens), *ACTIVATIONS)
    first = 0
    for stage in params.stages:
        pattern = config.layers[first : first + len(stage)]
        first += len(stage) * count_repeats(stage)

        def apply(layer: Layer, weights: LayerWeights, x: Array) -> Array:
            return block.apply(layer, weights, x, positions, None, config.norm_eps)[0]

        def repeat(
            x: Array, weights: tuple[LayerWeights, ...], pattern: tuple[Layer, ...] = pattern
        ) -> tuple[Array, None]:
            for layer, layer_weights in zip(pattern, weights, strict=True):
                x = jax.checkpoint(apply, policy=POLICIES[remat], prevent_cse=False, static_argnums=0)(
                    layer, layer_weights, x
                )
            return sharding.constrain(x, *ACTIVATIONS), None

        x, _ = jax.lax.scan(repeat, x, stage)
    return ops.rms_norm(x, params.final_norm, config.norm_eps)


def encode(
    config: Vision, params: VisionWeights, pixels: Float[Array, "N P P 3"], remat: Remat = "layers"
) -> Float[Array, "N tokens D"]:
    """Return the soft tokens of images, as `vision.encode` does, from a tower whose layers are stacked.

    Args:
        config: The tower.
        params: Its weights; activations have the dtype of the patch embedding.
        pixels: Square RGB images of the tower's size, in [-1, 1].
        remat: What is kept for the gradient; the rest is computed again.
    """

    def apply(weights: VisionLayerWeights, x: Array) -> Array:
        return vision.layer(config, weights, x)

    def repeat(x: Array, weights: VisionLayerWeights) -> tuple[Array, None]:
        x = jax.checkpoint(apply, policy=POLICIES[remat], prevent_cse=False)(weights, x)
        return sharding.constrain(x, "batch", None, None), None

    x = sharding.constrain(vision.embed(config, params, pixels), "batch", None, None)
    x, _ = jax.lax.scan(repeat, x, params.layers[0])
    return vision.project(config, params, x)
