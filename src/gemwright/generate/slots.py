"""Decode slots: sequences that are decoded together and can be inserted, evicted, copied, saved and restored.

Every array has an axis of S slots in front. A slot whose `remaining` is 0 is idle: it neither moves nor changes.
Functions take a `Slots` or a `DecodeState` alone; those that change one donate its buffers, so that nothing is copied
but the slots concerned. A prefilled prompt or a snapshot is a value of the same type with fewer slots, or with KV
caches of smaller capacity.

The idea of insertion into slots is that of JetStream (github.com/AI-Hypercomputer/JetStream).
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.generate.sampling import BatchedSampling, Sampling, TokenCounts
from gemwright.generate.tournament import TournamentState
from gemwright.model.state import DecodeState, KVCache
from gemwright.typing import Array, Int

STOP_IDS = 8
"""Widths of `Slots.stop_ids` are multiples of this, so that few programs are compiled."""


@tree.node
class Slots:
    """All that decoding needs of S sequences.

    Attributes:
        state: Caches and lengths, of all but each sequence's last token.
        token: The last token of each sequence.
        remaining: How many more tokens to decode; 0 if the slot is idle.
        stop_ids: Ids that end each sequence, padded with -1.
        sampling: Sampling settings.
        counts: Tokens of each text, if some sequence may have a penalty.
        contexts: What a watermark has seen of each text, if there is one.
    """

    state: DecodeState
    token: Int[Array, " S"]
    remaining: Int[Array, " S"]
    stop_ids: Int[Array, "S K"]
    sampling: BatchedSampling
    counts: TokenCounts | None
    contexts: TournamentState | None = None


_Sequences = TypeVar("_Sequences", Slots, DecodeState)


def empty_slots(state: DecodeState, stop_ids: int = STOP_IDS, vocab: int | None = None) -> Slots:
    """Return idle slots over an empty state.

    Args:
        state: see `gemwright.model.state.empty_state`.
        stop_ids: most stop ids of a sequence.
        vocab: the model's vocabulary size if a sequence may have a penalty.
    """
    count = len(state.lengths)
    return Slots(
        state,
        token=jnp.zeros(count, jnp.int32),
        remaining=jnp.zeros(count, jnp.int32),
        stop_ids=jnp.full((count, stop_ids), -1, jnp.int32),
        sampling=BatchedSampling.stack([Sampling()] * count),
        counts=None if vocab is None else TokenCounts.empty(count, vocab),
    )


def stop_table(stop_ids: Sequence[Iterable[int]]) -> NDArray[np.int32]:
    """Return the stop ids of each sequence as [S, K], padded with -1 to a multiple of `STOP_IDS`."""
    rows = [sorted(set(ids)) for ids in stop_ids]
    width = max(1, *(-(-len(row) // STOP_IDS) for row in rows)) * STOP_IDS
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32)


@functools.partial(jax.jit, donate_argnames="slots")
def insert(slots: _Sequences, sequences: _Sequences, at: Int[Array, " B"]) -> _Sequences:
    """Put B sequences into slots, whatever is in there.

    Args:
        slots: donated.
        sequences: B of them, with KV caches of the same or a smaller capacity and the same slack. A cache smaller than
            the slot's has not rotated yet, so its entries keep their places.
        at: the slot of each sequence; S leaves it out.
    """

    def put(into: Array, new: Array) -> Array:
        return into.at[(at, *map(slice, new.shape[1:]))].set(new, mode="drop")

    return jax.tree.map(put, slots, sequences)


@functools.partial(jax.jit, donate_argnames="slots")
def evict(slots: _Sequences, at: Int[Array, " N"]) -> _Sequences:
    """Empty slots: their length becomes 0, which hides what their caches hold. `slots` is donated."""
    if isinstance(slots, DecodeState):
        return replace(slots, lengths=slots.lengths.at[at].set(0, mode="drop"))
    return replace(slots, state=evict(slots.state, at), remaining=slots.remaining.at[at].set(0, mode="drop"))


@functools.partial(jax.jit, donate_argnames="slots")
def copy(slots: _Sequences, source: Int[Array, " N"], target: Int[Array, " N"]) -> _Sequences:
    """Copy the sequences in slots `source` to slots `target`. `slots` is donated."""

    def overwrite(leaf: Array) -> Array:
        return leaf.at[target].set(leaf[source], mode="drop")

    return jax.tree.map(overwrite, slots)


@jax.jit
def gather(slots: _Sequences, at: Int[Array, " N"]) -> _Sequences:
    """Return N slots, copies of those at `at`; `slots` is left as it is."""

    def take(leaf: Array) -> Array:
        return leaf[at]

    return jax.tree.map(take, slots)


@functools.partial(jax.jit, static_argnames="capacity")
def snapshot(slots: _Sequences, slot: Int[Array, ""], capacity: int) -> _Sequences:
    """Return a copy of one slot, as a value with a single slot.

    Args:
        slots: is left as it is.
        slot: which one.
        capacity: at least the sequence's length; KV caches are cut to it.
    """

    def cut(part: Array | KVCache) -> Array | KVCache:
        if isinstance(part, KVCache):
            return KVCache(*(_take(leaf, slot)[:, :, :capacity] for leaf in (part.keys, part.values)))
        return _take(part, slot)

    return jax.tree.map(cut, slots, is_leaf=lambda part: isinstance(part, KVCache))


def restore(slots: _Sequences, saved: _Sequences, slot: int | Int[Array, ""]) -> _Sequences:
    """Put a snapshot, or any single sequence, into a slot. `slots` is donated."""
    return insert(slots, saved, jnp.asarray(slot, jnp.int32)[None])


def _take(leaf: Array, slot: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(leaf, slot, 1)
