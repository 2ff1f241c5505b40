"""Restrictions of single tokens, per sequence: masks of grammars, logit biases and minimum lengths.

All are arrays of fixed shapes, so that any mix of them runs in one program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.typing import Array, Bool, Float, Int

ANY = np.int32(-1)
"""A word of a mask that allows all of its 32 tokens."""


@tree.node
class TokenBias:
    """The tokens that each sequence may choose, and numbers that are added to their logits.

    The arrays are applied to the model's logits, before penalties, temperature and filters. If that leaves a sequence
    no token, its choice is `programs.NO_TOKEN`, which ends it.

    Attributes:
        allowed: Token i may be chosen if bit i % 32 of word i // 32 is set; W is V / 32, rounded up.
        ids: Tokens with a bias, padded with -1; N is the same in all calls.
        values: Their biases; minus infinity bans a token.
        min_tokens: How many of the next tokens may not be stop ids.
    """

    allowed: Int[Array, "B W"]
    ids: Int[Array, "B N"]
    values: Float[Array, "B N"]
    min_tokens: Int[Array, " B"]

    @classmethod
    def stack(
        cls,
        biases: Sequence[Mapping[int, float]],
        min_tokens: Sequence[int],
        allowed: NDArray[np.int32],
        width: int,
    ) -> "TokenBias":
        """Return new arrays, on the host, for a batch.

        Args:
            biases: the biases of each sequence by token, at most `width` of them.
            min_tokens: one per sequence.
            allowed: [B, W], copied; `ANY` everywhere for a sequence without a grammar.
            width: N.
        """
        ids = np.full((len(biases), width), -1, np.int32)
        values = np.zeros((len(biases), width), np.float32)
        for index, bias in enumerate(biases):
            ids[index, : len(bias)] = list(bias)
            values[index, : len(bias)] = list(bias.values())
        return cls(allowed.copy(), ids, values, np.asarray(min_tokens, np.int32))  # type: ignore[arg-type]

    def ban(self, ids: Int[Array, "B K"], where: Bool[Array, " B"]) -> "TokenBias":
        """Return the restrictions with other tokens banned in some of the sequences; an id of -1 bans none."""
        values = jnp.where(where[:, None], -jnp.inf, jnp.zeros(ids.shape, jnp.float32))
        return replace(
            self, ids=jnp.concatenate([self.ids, ids], axis=1), values=jnp.concatenate([self.values, values], axis=1)
        )

    def apply(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Return logits with the biases added, and minus infinity for tokens that may not be chosen."""
        count, size = logits.shape
        places = jnp.where(self.ids < 0, size, self.ids)  # -1 would count from the end; `size` is left out
        biased = logits.at[jnp.arange(count)[:, None], places].add(self.values, mode="drop")
        bits = self.allowed[:, :, None] >> jnp.arange(32) & 1
        return jnp.where(bits.reshape(count, -1)[:, :size] > 0, biased, -jnp.inf)


def mask_width(vocab: int) -> int:
    """Return the number of words of a mask over `vocab` tokens."""
    return -(-vocab // 32)
