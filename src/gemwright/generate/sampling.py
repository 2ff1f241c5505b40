"""How the next token is chosen: each filter is a threshold on the logits, and one uniform number picks the token.

The order is the field's: repetition penalty, temperature, top-k, top-p, min-p.
"""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree, weights
from gemwright.errors import GemwrightError
from gemwright.typing import Array, Bool, Float, Int, UInt

CANDIDATES = 256
"""Logits that are put in order to find a threshold; all of them only where these do not suffice."""
USUAL = 64
"""Logits that are looked for where no row has a larger top-k."""


@dataclass(frozen=True)
class Sampling:
    """How one sequence is sampled. Temperature 0 is greedy; the other defaults filter nothing.

    Attributes:
        temperature: Divides the logits.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together reach this probability.
        min_p: Keep tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that stand in the text.
        seed: The same seed, prompt and settings give the same text, whatever else is in the batch.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        bounds = {
            "temperature": (0.0, 100.0),
            "top_k": (0, 2**31 - 1),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (0.01, 100.0),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:  # NaN is in no interval
                raise GemwrightError(f"{name} is {value}, and it must lie between {low} and {high}.")
        if self.top_p == 0.0:
            raise GemwrightError("top_p is 0, which keeps no token; use temperature 0 for greedy decoding.")


@tree.node
class Knobs:
    """The sampling settings of a batch as arrays, so that another setting is not another program."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    seed: UInt[Array, " B"]


def knobs(rows: list[Sampling]) -> Knobs:
    """Stack the settings of the rows of a batch."""

    def column(name: str) -> Array:
        dtype = {"top_k": np.int32, "seed": np.uint32}.get(name, np.float32)
        # `jnp.asarray` would run a program of its own, which each start lowers and reads.
        return jax.device_put(np.array([getattr(row, name) for row in rows], dtype))

    return Knobs(**{field.name: column(field.name) for field in fields(Knobs)})  # type: ignore[arg-type]


def uniform(seeds: UInt[Array, " B"], positions: Int[Array, " B"]) -> Float[Array, " B"]:
    """One number in [0, 1) for each row, of its seed and the position of its token alone."""

    def draw(seed: Array, position: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position))

    return jax.vmap(draw)(seeds, positions)


def penalise(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Repetition penalty (arXiv:1909.05858) on the tokens that stand in the text."""
    factor = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / factor, logits * factor), logits)


def greedy(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The likeliest token, the lowest id where two are equal."""
    return jax.lax.top_k(logits, 1)[1][:, 0]


def few(rows: list[Sampling]) -> int | None:
    """How many of the largest logits decide what each of these rows draws; None if it takes all of them."""
    if any(row.temperature > 0 and not 1 <= row.top_k <= CANDIDATES for row in rows):
        return None
    most = max(1 if row.temperature == 0 else row.top_k for row in rows)
    return next(count for count in (1, USUAL, CANDIDATES) if most <= count)


def sample(logits: Float[Array, "B V"], settings: Knobs, number: Float[Array, " B"]) -> Int[Array, " B"]:
    """Draw a token for each row by its own settings; rows with temperature 0 are greedy.

    Args:
        logits: scores in float32.
        settings: one entry per row.
        number: uniform in [0, 1), one per row.
    """
    largest, ids = weights.largest(logits, min(CANDIDATES, logits.shape[-1]))
    scaled = logits / jnp.where(settings.temperature == 0, 1.0, settings.temperature)[:, None]
    mass = jnp.exp(scaled - jnp.max(scaled, axis=-1, keepdims=True))
    mass = jnp.where(scaled >= _threshold(scaled, settings)[:, None], mass, 0.0)
    drawn = _inverse(mass, number)
    # Rounding in the running sums may point at a token without mass, about once in 10^7 draws.
    has_mass = jnp.take_along_axis(mass, drawn[:, None], axis=-1)[:, 0] > 0
    drawn = jnp.where(has_mass, drawn, ids[:, 0])
    decided = (settings.temperature == 0) | ((settings.top_k > 0) & (settings.top_k <= CANDIDATES))
    return jnp.where(decided, sample_few(largest, ids, settings, number), drawn)


def sample_few(
    largest: Float[Array, "B C"], ids: Int[Array, "B C"], settings: Knobs, number: Float[Array, " B"]
) -> Int[Array, " B"]:
    """As `sample`, from the largest logits, best first, and their ids: where `few` says that they decide."""
    is_greedy = settings.temperature == 0
    # Always as many, so that sums are rounded alike however many were looked for.
    scaled = largest / jnp.where(is_greedy, 1.0, settings.temperature)[:, None]
    scaled = jnp.pad(scaled, ((0, 0), (0, max(0, CANDIDATES - scaled.shape[1]))), constant_values=-jnp.inf)
    likeliest, ids = ids[:, 0], jnp.pad(ids, ((0, 0), (0, scaled.shape[1] - ids.shape[1])))
    keep = _kept(scaled, jnp.where(is_greedy, 1, settings.top_k), settings, jnp.inf)
    mass = jnp.where(keep, jnp.exp(scaled - scaled[:, :1]), 0.0)
    # In the order of the vocabulary, as `sample` goes through it; what cannot be drawn comes last.
    order = jnp.argsort(jnp.where(mass > 0, ids, jnp.iinfo(jnp.int32).max), axis=-1)
    mass, ids = jnp.take_along_axis(mass, order, axis=-1), jnp.take_along_axis(ids, order, axis=-1)
    running = jnp.cumsum(mass, axis=-1)
    place = jnp.sum(running <= number[:, None] * running[:, -1:], axis=-1)
    place = jnp.minimum(place, mass.shape[1] - 1)[:, None]
    drawn = jnp.take_along_axis(ids, place, axis=-1)[:, 0]
    return jnp.where(is_greedy | (jnp.take_along_axis(mass, place, axis=-1)[:, 0] == 0), likeliest, drawn)


def _threshold(scaled: Float[Array, "B V"], settings: Knobs) -> Float[Array, " B"]:
    """The least logit that passes top-k, top-p and min-p."""
    vocabulary = scaled.shape[-1]
    log_total = jax.nn.logsumexp(scaled, axis=-1)
    idle = (settings.top_k == 0) & (settings.top_p >= 1.0) & (settings.min_p <= 0.0)
    top_k = jnp.where(settings.top_k == 0, vocabulary, jnp.minimum(settings.top_k, vocabulary))

    def least(ordered: Float[Array, "B C"]) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        """The least logit kept, and whether it is sure that no logit below `ordered` would be kept."""
        keep = _kept(ordered, top_k, settings, log_total)
        known = top_k <= ordered.shape[-1]
        sure = known | (~keep[:, -1] & (top_k == vocabulary))  # else the total of the k likeliest is not known
        return jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1), sure

    some, sure = least(weights.largest(scaled, min(CANDIDATES, vocabulary))[0])
    cutoff = jax.lax.cond(jnp.all(sure | idle), lambda: some, lambda: least(-jnp.sort(-scaled, axis=-1))[0])
    return jnp.where(idle, -jnp.inf, cutoff)


def _kept(
    ordered: Float[Array, "B C"], top_k: Int[Array, " B"], settings: Knobs, log_total: Float[Array, " B"] | float
) -> Bool[Array, "B C"]:
    """Which of the largest logits, best first, pass top-k, top-p and min-p; log_total is that of all logits."""
    in_k = jnp.arange(ordered.shape[-1]) < top_k[:, None]
    within = jax.nn.logsumexp(jnp.where(in_k, ordered, -jnp.inf), axis=-1)
    log_k = jnp.where(top_k <= ordered.shape[-1], within, log_total)
    probability = jnp.where(in_k, jnp.exp(ordered - log_k[:, None]), 0.0)
    before = jnp.cumsum(probability, axis=-1) - probability
    keep = in_k & (before < settings.top_p[:, None])
    return keep & (probability >= settings.min_p[:, None] * probability[:, :1])


def _inverse(mass: Float[Array, "B V"], number: Float[Array, " B"]) -> Int[Array, " B"]:
    """The index at which the running sum of `mass` passes `number` times the total, found in two steps."""
    rows = mass.shape[0]
    width = 512
    blocks = jnp.pad(mass, ((0, 0), (0, -mass.shape[1] % width))).reshape(rows, -1, width)
    running = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = number * running[:, -1]
    block = jnp.minimum(jnp.sum(running <= target[:, None], axis=-1), running.shape[-1] - 1)
    target -= jnp.where(block > 0, jnp.take_along_axis(running, block[:, None] - 1, axis=-1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place = jnp.minimum(jnp.sum(jnp.cumsum(inside, axis=-1) <= target[:, None], axis=-1), width - 1)
    return jnp.minimum(block * width + place, mass.shape[1] - 1)
