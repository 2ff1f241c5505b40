"""Sampling: filters as thresholds on the logits, and a token drawn by uniform random numbers.

The order of transformers and vLLM: repetition, frequency and presence penalty, temperature, top-k, top-p, min-p.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree, weights
from gemwright.errors import GemwrightError
from gemwright.generate.tournament import Tournament
from gemwright.typing import Array, Bool, Float, Int, UInt

CANDIDATES = 256
"""Largest top-k sampled from a sorted top-k; above it, the full vocabulary is used, unsorted."""
USUAL = 64
"""Size of the sorted top-k if no sequence has a larger one."""
BLOCK = 512
"""Number of tokens per block of a blockwise sum: about the square root of a large vocabulary."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of one sequence. Temperature 0 is greedy; the other defaults filter nothing.

    Attributes:
        temperature: Divides the logits.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens whose total probability reaches this.
        min_p: Keep tokens whose probability is at least this fraction of the largest.
        repetition_penalty: Divides the positive and multiplies the negative logits of tokens in the text.
        presence_penalty: Subtracted from the logits of tokens that were generated, not of those in the prompt only.
        frequency_penalty: Subtracted from them for each time that they were generated.
        seed: The same seed, prompt and settings give the same text, independent of the batch.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self):
        bounds = {
            "temperature": (0.0, 100.0),
            "top_k": (0, 2**31 - 1),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (0.01, 100.0),
            "presence_penalty": (-2.0, 2.0),
            "frequency_penalty": (-2.0, 2.0),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:  # NaN is in no interval
                raise GemwrightError(f"{name} is {value}, and it must lie between {low} and {high}.")
        if self.top_p == 0.0:
            raise GemwrightError("top_p is 0, which keeps no token; use temperature 0 for greedy decoding.")

    @property
    def has_penalty(self) -> bool:
        """Whether the choice of a token depends on which tokens are in the text."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@tree.node
class BatchedSampling:
    """Sampling settings of a batch as arrays, so that other settings need no other program."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    presence_penalty: Float[Array, " B"]
    frequency_penalty: Float[Array, " B"]
    seed: UInt[Array, " B"]

    @classmethod
    def stack(cls, sequences: Sequence[Sampling]) -> "BatchedSampling":
        """Stack the settings of the sequences of a batch."""

        def column(name: str) -> Array:
            dtype = {"top_k": np.int32, "seed": np.uint32}.get(name, np.float32)
            # `jnp.asarray` would compile and load a program of its own at every start.
            return jax.device_put(np.array([getattr(sequence, name) for sequence in sequences], dtype))

        return cls(**{field.name: column(field.name) for field in fields(cls)})  # type: ignore[arg-type]


@tree.node
class TokenCounts:
    """The tokens of each text, for the penalties.

    Attributes:
        in_prompt: Which tokens are in the prompt.
        generated: How often each token was generated.
    """

    in_prompt: Bool[Array, "B V"]
    generated: Int[Array, "B V"]

    @classmethod
    def empty(cls, count: int, vocab: int) -> "TokenCounts":
        """Return the counts of `count` empty texts."""
        return cls(jnp.zeros((count, vocab), bool), jnp.zeros((count, vocab), jnp.int32))


def uniform(seeds: UInt[Array, " B"], positions: Int[Array, " B"]) -> Float[Array, "B 2"]:
    """Return two numbers in [0, 1) per sequence, which depend only on its seed and the token's position."""

    def draw(seed: Array, position: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position), (2,))

    return jax.vmap(draw)(seeds, positions)


def penalise(logits: Float[Array, "B V"], counts: TokenCounts, settings: BatchedSampling) -> Float[Array, "B V"]:
    """Apply the penalties to the tokens of the texts.

    Sources: arXiv:1909.05858 (repetition); platform.openai.com/docs/api-reference/chat (presence, frequency).
    """
    factor, is_generated = settings.repetition_penalty[:, None], counts.generated > 0
    repeated = jnp.where(logits > 0, logits / factor, logits * factor)
    scores = jnp.where(counts.in_prompt | is_generated, repeated, logits)
    scores -= settings.frequency_penalty[:, None] * counts.generated
    return scores - settings.presence_penalty[:, None] * is_generated


def candidate_count(samplings: Sequence[Sampling]) -> int | None:
    """Return how many of the largest logits are enough to sample all sequences; None if all logits are needed."""
    if any(s.temperature > 0 and not 1 <= s.top_k <= CANDIDATES for s in samplings):
        return None
    most = max(1 if s.temperature == 0 else s.top_k for s in samplings)
    return next(count for count in (1, USUAL, CANDIDATES) if most <= count)


def sample(logits: Float[Array, "B V"], settings: BatchedSampling, numbers: Float[Array, "B 2"]) -> Int[Array, " B"]:
    """Sample a token for each sequence by its own settings; temperature 0 is greedy.

    Args:
        logits: in float32.
        settings: one entry per sequence.
        numbers: uniform in [0, 1), two per sequence.
    """
    is_greedy = settings.temperature == 0
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    mass = jnp.exp(below / jnp.where(is_greedy, 1.0, settings.temperature)[:, None])
    drawn = _draw(jnp.where(_kept(logits, mass, settings), mass, 0.0), numbers)
    decided = is_greedy | ((settings.top_k > 0) & (settings.top_k <= CANDIDATES))

    def from_top() -> Array:
        largest, ids = weights.largest(logits, min(CANDIDATES, logits.shape[-1]))
        return jnp.where(decided, sample_from_top(largest, ids, settings, numbers), drawn)

    return jax.lax.cond(jnp.any(decided), from_top, lambda: drawn)


def sample_from_top(
    largest: Float[Array, "B C"],
    ids: Int[Array, "B C"],
    settings: BatchedSampling,
    numbers: Float[Array, "B 2"],
    tournament: Tournament | None = None,
) -> Int[Array, " B"]:
    """Sample like `sample` from the `candidate_count` largest logits, best first, and their ids.

    A tournament, of a watermark, moves probability among the tokens that the filters keep.
    """
    is_greedy = settings.temperature == 0
    # A fixed width, so that rounding of sums does not depend on the number of candidates.
    scaled = largest / jnp.where(is_greedy, 1.0, settings.temperature)[:, None]
    scaled = jnp.pad(scaled, ((0, 0), (0, max(0, CANDIDATES - scaled.shape[1]))), constant_values=-jnp.inf)
    likeliest, ids = ids[:, 0], jnp.pad(ids, ((0, 0), (0, scaled.shape[1] - ids.shape[1])))
    in_k = jnp.arange(scaled.shape[1]) < jnp.where(is_greedy, 1, settings.top_k)[:, None]
    log_total = jax.nn.logsumexp(jnp.where(in_k, scaled, -jnp.inf), axis=-1, keepdims=True)
    probability = jnp.where(in_k, jnp.exp(scaled - log_total), 0.0)
    keep = in_k & (jnp.cumsum(probability, axis=-1) - probability < settings.top_p[:, None])
    keep &= probability >= settings.min_p[:, None] * probability[:, :1]
    mass = jnp.where(keep, jnp.exp(scaled - scaled[:, :1]), 0.0)
    # In vocabulary order, like `sample`; tokens without mass come last.
    order = jnp.argsort(jnp.where(mass > 0, ids, jnp.iinfo(jnp.int32).max), axis=-1)
    mass, ids = jnp.take_along_axis(mass, order, axis=-1), jnp.take_along_axis(ids, order, axis=-1)
    mass = mass if tournament is None else tournament.play(mass, ids)
    running = jnp.cumsum(mass, axis=-1)
    place = jnp.sum(running <= numbers[:, :1] * running[:, -1:], axis=-1)
    place = jnp.minimum(place, mass.shape[1] - 1)[:, None]
    drawn = jnp.take_along_axis(ids, place, axis=-1)[:, 0]
    return jnp.where(is_greedy | (jnp.take_along_axis(mass, place, axis=-1)[:, 0] == 0), likeliest, drawn)


def _kept(logits: Float[Array, "B V"], mass: Float[Array, "B V"], settings: BatchedSampling) -> Bool[Array, "B V"]:
    """Return which tokens pass top-k, top-p and min-p. Equal logits are kept or dropped together.

    Args:
        logits: before the temperature.
        mass: probabilities at the temperature, relative to the likeliest token's.
        settings: one entry per sequence.
    """
    limited = (settings.top_k > 0) & (settings.top_k < logits.shape[-1])
    in_k = logits >= _least(logits, jnp.ones_like(mass), jnp.where(limited, settings.top_k, jnp.inf))[:, None]
    among = jnp.where(in_k, mass, 0.0)
    nucleus = jnp.where(settings.top_p < 1.0, settings.top_p * _total(among), jnp.inf)
    in_p = logits >= _least(logits, among, nucleus)[:, None]
    return in_k & in_p & (mass >= settings.min_p[:, None])


def _least(x: Float[Array, "B V"], mass: Float[Array, "B V"], bound: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return the least number above which the entries of x have less mass than `bound`, which is positive.

    Bisection instead of a sort: 32 halvings of the 2^32 float32 values leave one.
    """

    def ordered(bits: Array) -> Array:
        """Map bits of floats to integers in the same order; the map is its own inverse."""
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # the sum of both could overflow
        number = jax.lax.bitcast_convert_type(ordered(middle), jnp.float32)
        is_less = _total(jnp.where(x > number[:, None], mass, 0.0)) < bound
        return jnp.where(is_less, low, middle + 1), jnp.where(is_less, middle, high)

    def search() -> Array:
        ends = (jnp.min(x, axis=-1), jnp.max(x, axis=-1))
        low, high = (ordered(jax.lax.bitcast_convert_type(end, jnp.int32)) for end in ends)
        least = jax.lax.fori_loop(0, 32, halve, (low, high))[1]
        return jax.lax.bitcast_convert_type(ordered(least), jnp.float32)

    # Without a bound, the search would find the least entry, which keeps all as well.
    return jax.lax.cond(jnp.any(bound < jnp.inf), search, lambda: jnp.full(bound.shape, -jnp.inf))


def _draw(mass: Float[Array, "B V"], numbers: Float[Array, "B 2"]) -> Int[Array, " B"]:
    """Draw an index in proportion to its mass: one number chooses the block, the other the place in it.

    A number has 23 bits. With one for both, the probability of each token would be a multiple of 2^-23, too coarse for
    a nearly uniform distribution over a large vocabulary. With two, errors are relative to the block's: the rounding
    error of a sum of 512 entries is at most 3e-5 of it, and typically 1e-7.
    """
    blocks = _blocks(mass)
    block = _place(jnp.sum(blocks, axis=-1), numbers[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _place(inside, numbers[:, 1])


def _place(mass: Float[Array, "B N"], number: Float[Array, " B"]) -> Int[Array, " B"]:
    """Return where the running sum reaches a fraction in (0, 1] of the total: never at an entry without mass."""
    running = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), -1.0)
    total = jnp.max(running, axis=-1, keepdims=True)  # reached in spite of rounding
    return jnp.argmax(running >= (1.0 - number[:, None]) * total, axis=-1)


def _total(x: Float[Array, "B V"]) -> Float[Array, " B"]:
    """Return the sums over the vocabulary, in blocks first, for less rounding error."""
    return jnp.sum(jnp.sum(_blocks(x), axis=-1), axis=-1)


def _blocks(x: Float[Array, "B V"]) -> Float[Array, "B N W"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK))).reshape(len(x), -1, BLOCK)
