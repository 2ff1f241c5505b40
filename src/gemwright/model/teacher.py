"""The next-token distribution of a teacher, whole or on a sample of the vocabulary.

Sources: arXiv:2408.00118 (Gemma 2: cross-entropy with the whole distribution), arXiv:2503.19786 (Gemma 3: 256 entries a
token, sampled in proportion to the teacher's probabilities, the others zero).
"""

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from gemwright import ops, tree, weights
from gemwright.model.config import Config
from gemwright.typing import Array, Float, Int
from gemwright.weights import Weight

Weighting: TypeAlias = Literal["draws", "probabilities"]


@tree.node
class Teacher:
    """A teacher at the tokens of a batch.

    Attributes:
        hidden: Its hidden states after the final norm.
        head: Its head [V, W]; rows beyond the student's vocabulary are left out.
        uniform: A random number in [0, 1) for each token, with which entries are sampled.
        config: The teacher.
        samples: Number of draws from the vocabulary at each token; None for the whole distribution.
        weighting: What a drawn entry counts; see `weigh`.
    """

    hidden: Float[Array, "N W"]
    head: Weight
    uniform: Float[Array, " N"]
    config: Config = tree.static()
    samples: int | None = tree.static()
    weighting: Weighting = tree.static()

    def distribution(self, places: Int[Array, " n"], vocab: int, axis: int) -> tuple[Array, Array]:
        """Return the distribution after some tokens, [V, n] or with the vocabulary on the last axis, and its entropy.

        Args:
            places: Numbers of the tokens.
            vocab: Number of rows of the student's vocabulary.
            axis: The axis of the vocabulary.
        """
        # As in `loss`, a plain head is the first of two matrices.
        own, hidden = (0 if isinstance(self.head, Array) else 1), self.hidden[places]
        pair: Any = (self.head, hidden) if own == 0 else (hidden, self.head)
        scores = jax.lax.slice_in_dim(
            weights.matmul(*pair, out=jnp.float32), 0, min(vocab, self.head.shape[0]), axis=own
        )
        logprobs = jax.nn.log_softmax(ops.soft_cap(scores, self.config.final_soft_cap), axis=own)
        probabilities = jnp.exp(logprobs)
        entropy = -jnp.sum(jnp.where(probabilities > 0, probabilities * logprobs, 0.0), axis=own)
        probabilities = jnp.moveaxis(probabilities, own, 1)
        if self.samples is not None:
            probabilities = weigh(
                probabilities, draw(probabilities, self.uniform[places], self.samples), self.weighting
            )
        padded = jnp.pad(probabilities, ((0, 0), (0, vocab - probabilities.shape[1])))
        return jnp.moveaxis(padded, 1, axis), entropy


def draw(probabilities: Float[Array, "n V"], uniform: Float[Array, " n"], count: int) -> Int[Array, "n K"]:
    """Draw entries in proportion to their probabilities, systematically: the expected number of draws of one is K p.

    The draws are the entries at the quantiles (k + u) / K, in order. So an entry is drawn K p times, rounded down or
    up, and one of p >= 1 / K always, which independent draws do not guarantee.

    Args:
        probabilities: Distributions.
        uniform: A random number u in [0, 1) for each.
        count: Number of draws K; an entry may be drawn several times.
    """
    cumulative = jnp.cumsum(probabilities, axis=1)
    quantiles = (jnp.arange(count) + uniform[:, None]) / count * cumulative[:, -1:]
    found = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(cumulative, quantiles)
    return jnp.minimum(found, probabilities.shape[1] - 1).astype(jnp.int32)


def weigh(probabilities: Float[Array, "n V"], ids: Int[Array, "n K"], weighting: Weighting) -> Float[Array, "n V"]:
    """Return the distribution over drawn entries; all others are zero.

    Args:
        probabilities: Distributions.
        ids: Drawn entries, equal ones side by side.
        weighting: "draws" counts each draw as 1 / K, so that the expected distribution is the teacher's;
            "probabilities" keeps the probabilities of the entries that were drawn, divided by their sum, which gives
            rare ones less than their share.
    """
    places = jnp.arange(len(ids))[:, None]
    if weighting == "draws":
        return jnp.zeros_like(probabilities).at[places, ids].add(1 / ids.shape[1])
    kept = jnp.zeros_like(probabilities).at[places, ids].set(jnp.take_along_axis(probabilities, ids, axis=1))
    return kept / jnp.sum(kept, axis=1, keepdims=True)
