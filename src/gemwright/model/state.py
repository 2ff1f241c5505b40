"""The decode state of sequences, KV caches and recurrent states, and the positions of new tokens.

Lengths and positions are stored once, in `DecodeState` and `Positions`, and not by each layer.
"""

import functools
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemwright import sharding, tree
from gemwright.model.config import Attention, Config, Layer, Mixer, Recurrent
from gemwright.typing import Array, Float, Int


@tree.node
class Positions:
    """Positions of the tokens of one call.

    A padding token has position -1: it is never attended to, never stored, and its output is undefined.
    """

    indices: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None
    """Document of each token if several are packed in a sequence (training only). Attention stays within documents."""
    lengths: Int[Array, " B"]
    """Tokens of each sequence in the state before the call."""
    groups: Int[Array, "B T"] | None = None
    """Tokens of one group, numbered from 0, attend to each other both ways; tokens of group -1 are causal. A group
    never spans two calls."""


@tree.node
class KVCache:
    """A rotating cache of the keys and values of the last `cells` tokens: position p is in cell p % cells."""

    keys: Float[Array, "B K S H"]
    values: Float[Array, "B K S H"]

    @property
    def cells(self) -> int:
        """Capacity in tokens."""
        return self.keys.shape[2]


@tree.node
class RecurrentState:
    """The hidden state after the last token, in float32, and the last inputs of the convolution, newest last."""

    hidden: Float[Array, "B R"]
    inputs: Float[Array, "B C R"]


MixerState: TypeAlias = KVCache | RecurrentState


@tree.node
class DecodeState:
    """The state of a batch of sequences: their lengths in tokens, and the state of every layer."""

    lengths: Int[Array, " B"]
    layers: tuple[MixerState, ...]


@functools.partial(jax.jit, static_argnames=("config", "batch", "capacity", "dtype"))
def empty_state(config: Config, batch: int, capacity: int, dtype: DTypeLike) -> DecodeState:
    """Return a state for up to `capacity` tokens per sequence. A local layer never holds more than its window."""
    return divide(
        DecodeState(
            lengths=jnp.zeros((batch,), jnp.int32),
            layers=tuple(_empty(layer.mixer, batch, capacity, dtype) for layer in config.layers),
        )
    )


def state_axes(layer: MixerState) -> MixerState:
    """Return the names of the axes of each array of a layer's state, which `sharding.RULES` divides."""
    if isinstance(layer, KVCache):
        axes: Any = ("batch", "kv_heads", None, None)
        return KVCache(axes, axes)
    hidden: Any = ("batch", "recurrent")
    inputs: Any = ("batch", None, "recurrent")
    return RecurrentState(hidden, inputs)


def divide(state: DecodeState) -> DecodeState:
    """Return a state, divided among the devices of the current mesh; as it is without one."""

    def constrain(leaf: Array, axes: tuple[str | None, ...]) -> Array:
        return sharding.constrain(leaf, *axes)

    layers = tuple(jax.tree.map(constrain, layer, state_axes(layer)) for layer in state.layers)
    return DecodeState(sharding.constrain(state.lengths, None), layers)


def abstract_state(config: Config, batch: int, capacity: int, dtype: DTypeLike) -> DecodeState:
    """Return the shapes of `empty_state`, without allocating it."""
    make = functools.partial(empty_state, config=config, batch=batch, capacity=capacity, dtype=jnp.dtype(dtype))
    return jax.eval_shape(make)


def divided_shapes(state: DecodeState) -> DecodeState:
    """Return the shapes of a state with the shardings of `divide` in the current mesh."""

    def divided(leaf: Any, axes: tuple[str | None, ...]) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.sharding_of(axes, leaf.shape))

    layers = tuple(jax.tree.map(divided, layer, state_axes(layer)) for layer in state.layers)
    lengths: Any = divided(state.lengths, (None,))
    return DecodeState(lengths, layers)


def state_bytes(config: Config, batch: int, capacity: int, dtype: DTypeLike) -> int:
    """Return the size of a state in bytes."""
    leaves = jax.tree_util.tree_leaves(abstract_state(config, batch, capacity, dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@functools.partial(jax.jit, static_argnames=("config", "capacity"))
def grow(state: DecodeState, config: Config, capacity: int) -> DecodeState:
    """Return the state with a larger capacity, in tokens per sequence. Caches of a full window stay as they are.

    A cache smaller than its window has not rotated yet, so its entries keep their cells in a larger one.
    """

    def longer(layer: MixerState, mixer: Mixer) -> MixerState:
        if isinstance(layer, RecurrentState) or isinstance(mixer, Recurrent):
            return layer
        extra = _cells(mixer, capacity) - layer.cells
        pad = ((0, 0), (0, 0), (0, extra), (0, 0))
        return KVCache(jnp.pad(layer.keys, pad), jnp.pad(layer.values, pad)) if extra else layer

    layers = zip(state.layers, config.layers, strict=True)
    return DecodeState(state.lengths, tuple(longer(entry, layer.mixer) for entry, layer in layers))


def room(state: DecodeState, config: Config) -> int | None:
    """Return the capacity in tokens per sequence, or None if it is unbounded: local and recurrent layers forget."""
    capacities = [
        entry.cells
        for entry, layer in zip(state.layers, config.layers, strict=True)
        if isinstance(entry, KVCache) and isinstance(layer.mixer, Attention)
        if layer.mixer.window is None or entry.cells < layer.mixer.window
    ]
    return min(capacities, default=None)


def with_room(state: DecodeState, config: Config, length: int, capacity: int) -> DecodeState:
    """Return the state, grown to `capacity` tokens per sequence unless it has room for `length`."""
    fits = room(state, config)
    return state if fits is None or length <= fits else grow(state, config, capacity)


def with_slack(config: Config, slack: int) -> Config:
    """Widen local windows by `slack`, for the state of a model that rolls back up to `slack` tokens.

    Pass the result to `empty_state`, `grow` and `room` only. After lengths shrink by up to `slack`, overwritten entries
    are those of positions outside every window.
    """

    def wider(layer: Layer) -> Layer:
        if isinstance(layer.mixer, Recurrent) or layer.mixer.window is None:
            return layer
        return replace(layer, mixer=replace(layer.mixer, window=layer.mixer.window + slack))

    return replace(config, layers=tuple(map(wider, config.layers))) if slack else config


def _cells(mixer: Attention, capacity: int) -> int:
    return capacity if mixer.window is None else min(mixer.window, capacity)


def _empty(mixer: Mixer, batch: int, capacity: int, dtype: DTypeLike) -> MixerState:
    if isinstance(mixer, Recurrent):
        hidden = jnp.zeros((batch, mixer.width), jnp.float32)
        return RecurrentState(hidden, jnp.zeros((batch, mixer.conv_width - 1, mixer.width), dtype))
    shape = (batch, mixer.kv_heads, _cells(mixer, capacity), mixer.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
