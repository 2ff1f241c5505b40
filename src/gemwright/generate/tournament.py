"""The watermark of SynthID-Text while text is generated: a tournament among the candidates for the next token.

Which candidates win follows from the tokens before and from secret keys, and `watermark` finds out later that they
did. Over all keys the probabilities are those without the tournament. JAX has no integers of 64 bits unless it is
told to, so a hash is a pair of 32-bit halves.

Source: doi.org/10.1038/s41586-024-08025-4, with the hash of transformers' `SynthIDTextWatermarkLogitsProcessor`.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree
from gemwright.generate.watermark import MULTIPLIER, Watermark
from gemwright.typing import Array, Bool, Float, Int, UInt

_WORD = 0xFFFF_FFFF


class _Hash(NamedTuple):
    """An integer modulo 2^64 as two arrays of uint32."""

    high: Array
    low: Array


@tree.node
class TournamentState:
    """What the watermark has seen of each text.

    Attributes:
        context: The last tokens that were generated; zeros before the first. N is `ngram_len - 1`.
        history: Hashes of the last contexts, high and low half.
        calls: How many tokens have been chosen.
    """

    context: Int[Array, "B N"]
    history: UInt[Array, "B H 2"]
    calls: Int[Array, " B"]


@tree.node
class Tournament:
    """A tournament for the next token of each text.

    Attributes:
        high: High half of the hash of its context.
        low: Low half.
        marked: Whether the token is to be marked.
        keys: High and low half of each key.
        table: The table of g values.
    """

    high: UInt[Array, " B"]
    low: UInt[Array, " B"]
    marked: Bool[Array, " B"]
    keys: UInt[Array, "2 rounds"]
    table: UInt[Array, " size"]

    def g_values(self, ids: Int[Array, "B C"]) -> UInt[Array, "B C rounds"]:
        """Return the bit of each candidate for each key."""
        hashed = _advance(_Hash(self.high[:, None], self.low[:, None]), _from_ids(ids))
        hashed = _Hash(hashed.high[..., None], hashed.low[..., None])
        places = _modulo(_advance(hashed, _Hash(*self.keys)), len(self.table))
        return self.table[places]

    @jax.jit
    def play(self, mass: Float[Array, "B C"], ids: Int[Array, "B C"]) -> Float[Array, "B C"]:
        """Return the probabilities of the candidates after the tournament.

        Args:
            mass: Their probabilities before it, up to a factor; 0 for what is not a candidate.
            ids: Their tokens.

        Returns:
            The probabilities; `mass` itself where the token is not to be marked.
        """
        values = jnp.moveaxis(self.g_values(ids), -1, 0).astype(jnp.float32)

        def play_round(before: Array, value: Array) -> tuple[Array, None]:
            ones = jnp.sum(value * before, axis=-1, keepdims=True)
            return jnp.maximum(before * (1 + value - ones), 0.0), None  # rounding could leave less than nothing

        first = mass / jnp.sum(mass, axis=-1, keepdims=True)
        last, _ = jax.lax.scan(play_round, first, values)
        return jnp.where(self.marked[:, None], last, mass)


@tree.node
class TournamentKeys:
    """The settings of a watermark on the device, the same for all texts of a batch.

    Attributes:
        keys: High and low half of each key.
        table: The table of g values.
        size: Number of tokens of a context.
        remembered: Number of contexts that are remembered.
        skipped: Number of tokens at the beginning that are not marked.
    """

    keys: UInt[Array, "2 rounds"]
    table: UInt[Array, " size"]
    size: int = tree.static()
    remembered: int = tree.static()
    skipped: int = tree.static()

    @classmethod
    def place(cls, watermark: Watermark) -> "TournamentKeys":
        """Put a watermark on the device."""
        keys = np.array(watermark.keys, np.int64).view(np.uint64)
        halves = np.stack([keys >> np.uint64(32), keys & np.uint64(_WORD)]).astype(np.uint32)
        size = watermark.ngram_len - 1
        return cls(
            jax.device_put(halves),
            jax.device_put(watermark.table),
            size,
            watermark.context_history_size,
            size if watermark.skip_first_ngram_calls else 0,
        )

    def empty_state(self, count: int) -> TournamentState:
        """Return the state of `count` texts before their first tokens; prompts are no part of a context."""
        return TournamentState(
            jnp.zeros((count, self.size), jnp.int32),
            jnp.zeros((count, self.remembered, 2), jnp.uint32),
            jnp.zeros(count, jnp.int32),
        )

    @jax.jit
    def append(self, state: TournamentState, token: Int[Array, " B"]) -> TournamentState:
        """Return the state after a token of each text."""
        return replace(state, context=jnp.concatenate([state.context[:, 1:], token[:, None]], axis=1))

    @jax.jit
    def begin(self, state: TournamentState, active: Bool[Array, " B"]) -> tuple[Tournament, TournamentState]:
        """Return the tournament for the next token of each text, and the state that remembers its context.

        Args:
            state: of the texts.
            active: which texts get a token; the others keep their state.
        """
        hashed = _from_ids(jnp.ones_like(state.calls))
        for token in state.context.T:
            hashed = _advance(hashed, _from_ids(token))
        pair = jnp.stack(hashed, axis=-1)
        repeated = jnp.any(jnp.all(state.history == pair[:, None], axis=-1), axis=-1)
        counted = state.calls >= self.skipped
        kept = jnp.where(active & counted, (state.calls - self.skipped) % max(1, self.remembered), self.remembered)
        history = state.history.at[jnp.arange(len(kept)), kept].set(pair, mode="drop")
        tournament = Tournament(*hashed, counted & ~repeated, self.keys, self.table)
        return tournament, replace(state, history=history, calls=state.calls + active)


def _from_ids(ids: Array) -> _Hash:
    return _Hash(jnp.zeros_like(ids, jnp.uint32), ids.astype(jnp.uint32))


def _advance(hashed: _Hash, data: _Hash) -> _Hash:
    """Return `(hashed + data) * MULTIPLIER + 1` modulo 2^64."""
    low = hashed.low + data.low
    high = hashed.high + data.high + (low < data.low)
    factor = _Hash(jnp.uint32(MULTIPLIER >> 32), jnp.uint32(MULTIPLIER & _WORD))
    high = _high_product(low, MULTIPLIER & _WORD) + low * factor.high + high * factor.low
    low = low * factor.low + 1
    return _Hash(high + (low == 0), low)


def _high_product(x: Array, factor: int) -> Array:
    """Return the high half of the product of two integers of 32 bits, from products of 16."""
    x_high, x_low = x >> 16, x & 0xFFFF
    y_high, y_low = jnp.uint32(factor >> 16), jnp.uint32(factor & 0xFFFF)
    middle = x_high * y_low + (x_low * y_low >> 16)
    other = x_low * y_high + (middle & 0xFFFF)
    return x_high * y_high + (middle >> 16) + (other >> 16)


def _modulo(hashed: _Hash, size: int) -> Array:
    """Return a signed hash modulo `size`, at most 2^24, rounded toward minus infinity as in Python."""
    if size & (size - 1) == 0:
        return hashed.low & (size - 1)
    rest = jnp.zeros_like(hashed.low)
    for half in hashed:
        for shift in (24, 16, 8, 0):
            rest = (rest << 8 | half >> shift & 0xFF) % size
    wrapped = 2**64 % size  # what the unsigned number has too much if the sign bit is set
    return jnp.where(hashed.high >> 31 > 0, (rest + size - wrapped) % size, rest)
