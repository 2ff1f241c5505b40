"""What a sequence leaves behind for its next tokens, and where the tokens at hand stand.

Positions and lengths live once, in `DecodeState.lengths` and `Positions`; a mixer's own state holds only its arrays.
"""

import functools
from dataclasses import replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemwright import tree
from gemwright.model.config import Attention, Config, Layer, Mixer, Recurrent
from gemwright.typing import Array, Bool, Float, Int


@tree.node
class Positions:
    """Where the tokens of one call stand.

    A padding token has position -1: it is never seen, never stored, and its output means nothing.
    """

    indices: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None
    """Document of each token when several are packed in a row (training only); tokens see their own document."""
    lengths: Int[Array, " B"]
    """Tokens of each row that the state holds already."""
    groups: Int[Array, "B T"] | None = None
    """Tokens of a row with the same number, from 0, see each other both ways; those at -1 see only backwards.
    A block never spans two calls."""


@tree.node
class KVCache:
    """Keys and values of the last `slots` tokens: a ring, the token at position p lies in slot p % slots."""

    keys: Float[Array, "B K S H"]
    values: Float[Array, "B K S H"]

    @property
    def slots(self) -> int:
        """Number of tokens that fit."""
        return self.keys.shape[2]


@tree.node
class RecurrentState:
    """The hidden state after the last token, in float32, and the convolution's last inputs, newest at the end."""

    hidden: Float[Array, "B R"]
    inputs: Float[Array, "B C R"]


MixerState: TypeAlias = KVCache | RecurrentState


@tree.node
class DecodeState:
    """The state of a batch of sequences: one entry per layer, and how many tokens each row has seen."""

    lengths: Int[Array, " B"]
    layers: tuple[MixerState, ...]


@functools.partial(jax.jit, static_argnames=("config", "batch", "capacity", "dtype"))
def empty_state(config: Config, batch: int, capacity: int, dtype: DTypeLike) -> DecodeState:
    """A state for up to `capacity` tokens a row. A local layer never holds more than its window."""
    return DecodeState(
        lengths=jnp.zeros((batch,), jnp.int32),
        layers=tuple(_empty(layer.mixer, batch, capacity, dtype) for layer in config.layers),
    )


def abstract_state(config: Config, batch: int, capacity: int, dtype: DTypeLike) -> DecodeState:
    """The shapes of `empty_state`, without memory."""
    make = functools.partial(empty_state, config=config, batch=batch, capacity=capacity, dtype=jnp.dtype(dtype))
    return jax.eval_shape(make)


def state_bytes(config: Config, batch: int, capacity: int, dtype: DTypeLike) -> int:
    """Memory of a state in bytes."""
    leaves = jax.tree_util.tree_leaves(abstract_state(config, batch, capacity, dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@functools.partial(jax.jit, static_argnames=("config", "capacity"))
def grow(state: DecodeState, config: Config, capacity: int) -> DecodeState:
    """The same sequences with room for `capacity` tokens a row (more than before). Rings that are full size stay.

    A ring shorter than its window has not wrapped, so its slots keep their places in a longer one.
    """

    def longer(layer: MixerState, mixer: Mixer) -> MixerState:
        if isinstance(layer, RecurrentState) or isinstance(mixer, Recurrent):
            return layer
        extra = _slots(mixer, capacity) - layer.slots
        pad = ((0, 0), (0, 0), (0, extra), (0, 0))
        return KVCache(jnp.pad(layer.keys, pad), jnp.pad(layer.values, pad)) if extra else layer

    layers = zip(state.layers, config.layers, strict=True)
    return DecodeState(state.lengths, tuple(longer(entry, layer.mixer) for entry, layer in layers))


def room(state: DecodeState, config: Config) -> int | None:
    """How many tokens of a row fit; None where no number is too large, as local and recurrent layers forget."""
    rings = [
        entry.slots
        for entry, layer in zip(state.layers, config.layers, strict=True)
        if isinstance(entry, KVCache) and isinstance(layer.mixer, Attention)
        if layer.mixer.window is None or entry.slots < layer.mixer.window
    ]
    return min(rings, default=None)


def with_room(state: DecodeState, config: Config, length: int, capacity: int) -> DecodeState:
    """The state, grown to `capacity` tokens a row unless `length` fit already."""
    fits = room(state, config)
    return state if fits is None or length <= fits else grow(state, config, capacity)


def with_slack(config: Config, slack: int) -> Config:
    """The model as `empty_state`, `grow` and `room` take it for a state that can give `slack` tokens back.

    Its rings hold so many tokens more than their windows show. After lengths shrink by as many, a slot whose token was
    overwritten belongs to a position that no query sees.
    """

    def wider(layer: Layer) -> Layer:
        if isinstance(layer.mixer, Recurrent) or layer.mixer.window is None:
            return layer
        return replace(layer, mixer=replace(layer.mixer, window=layer.mixer.window + slack))

    return replace(config, layers=tuple(map(wider, config.layers))) if slack else config


def slot_positions(slots: int, lengths: Int[Array, " B"]) -> Int[Array, "B S"]:
    """The position of the token in each slot of a ring after `lengths` tokens; negative where a slot is empty."""
    last = lengths[:, None] - 1
    return last - (last - jnp.arange(slots)) % slots


def insert(
    state: KVCache, keys: Float[Array, "B T K H"], values: Float[Array, "B T K H"], positions: Positions
) -> KVCache:
    """Store tokens. Of a chunk longer than the ring only the last `slots` are kept; padding is dropped."""
    slots = state.slots
    newest = jnp.max(positions.indices, axis=1, keepdims=True)
    kept = (positions.indices >= 0) & (positions.indices > newest - slots)
    slot = jnp.where(kept, positions.indices % slots, slots)  # one past the end: dropped
    row = jnp.arange(slot.shape[0])[:, None]

    def store(ring: Array, new: Array) -> Array:
        return ring.at[row, :, slot].set(new.astype(ring.dtype), mode="drop")

    return KVCache(store(state.keys, keys), store(state.values, values))


def visible(queries: Int[Array, "B T"], keys: Int[Array, "B S"], window: int | None) -> Bool[Array, "B T S"]:
    """Causal mask by position: a query sees itself and what came before, at most `window` tokens in all."""
    distance = queries[:, :, None] - keys[:, None, :]
    mask = (distance >= 0) & (keys >= 0)[:, None, :]
    return mask if window is None else mask & (distance < window)


def _slots(mixer: Attention, capacity: int) -> int:
    return capacity if mixer.window is None else min(mixer.window, capacity)


def same_group(queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
    """Which tokens are of one block."""
    return (queries[:, :, None] == keys[:, None, :]) & (queries >= 0)[:, :, None]


def _empty(mixer: Mixer, batch: int, capacity: int, dtype: DTypeLike) -> MixerState:
    if isinstance(mixer, Recurrent):
        hidden = jnp.zeros((batch, mixer.width), jnp.float32)
        return RecurrentState(hidden, jnp.zeros((batch, mixer.conv_width - 1, mixer.width), dtype))
    shape = (batch, mixer.kv_heads, _slots(mixer, capacity), mixer.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
