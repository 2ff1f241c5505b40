"""The compiled programs of a model: feed a chunk of a prompt, decode one token, verify several, score a chunk."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemwright import tree, weights
from gemwright.generate import sampling
from gemwright.generate.sampling import Knobs
from gemwright.model import transformer
from gemwright.model.config import Config
from gemwright.model.spec import ModelWeights
from gemwright.model.state import DecodeState
from gemwright.model.transformer import Pictured
from gemwright.typing import Array, Bool, Float, Int

AHEAD = 8
"""Tokens of a row that one call of `decode` makes at most."""
SCORED_ROWS = 32
"""Positions whose logits stand in memory together while a text is scored: 32 MB for the largest vocabulary."""


class Decoding(NamedTuple):
    """What is fixed when a decoding program is compiled.

    Attributes:
        vocabulary: Ids at and above it are padding of the table and never chosen.
        few: How many of the largest logits decide; None for all of them.
        penalty: Some row has a repetition penalty.
        alternatives: How many of the likeliest tokens to report at each step with their log-probabilities; None
            reports no log-probabilities at all, not even that of the chosen token.
    """

    vocabulary: int
    few: int | None
    penalty: bool
    alternatives: int | None


@tree.node
class Choice:
    """One decoding step: the token of each row, its log-probability, and the likeliest tokens with theirs."""

    token: Int[Array, " B"]
    logprob: Float[Array, " B"] | None
    top_tokens: Int[Array, "B A"] | None
    top_logprobs: Float[Array, "B A"] | None


@functools.partial(jax.jit, static_argnames=("config", "last"), donate_argnames="state")
def feed(
    config: Config,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    pictured: Pictured | None = None,
    *,
    last: bool = False,
) -> tuple[DecodeState, Float[Array, "B D"] | None]:
    """Take a chunk of each row's prompt into the state.

    Where it is the last of some row, what the last token of each row gives comes too, for `choose`.
    """
    hidden, after = transformer.forward(config, params, tokens, state, valid=valid, pictured=pictured)
    assert after is not None
    ends = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
    return after, hidden[jnp.arange(tokens.shape[0]), ends] if last else None


@functools.partial(jax.jit, static_argnames=("config", "decoding"), donate_argnames=("state", "seen"))
def decode(
    config: Config,
    decoding: Decoding,
    params: ModelWeights,
    token: Int[Array, " B"],
    state: DecodeState,
    knobs: Knobs,
    seen: Bool[Array, "B V"] | None,
    count: Int[Array, ""],
) -> tuple[Choice, Int[Array, " B"], DecodeState, Bool[Array, "B V"] | None]:
    """Take one token of each row into the state and choose the next, `count` times, at most `AHEAD`.

    Several at a time spare a small model the host's work for each.

    Returns:
        The choices, [AHEAD, B] each, of which the first `count` are real; the last token of each row, which the state
        does not hold yet; the state and the seen tokens.
    """

    def step(
        carry: tuple[Array, Choice, Array, DecodeState, Array | None],
    ) -> tuple[Array, Choice, Array, DecodeState, Array | None]:
        at, choices, token, state, seen = carry
        hidden, after = transformer.forward(config, params, token[:, None], state)
        assert after is not None
        if seen is not None:
            seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
        choice = choose(config, decoding, params, hidden[:, 0], after.lengths, knobs, seen)
        choices = jax.tree.map(functools.partial(_put, at), choices, choice)
        return at + 1, choices, choice.token, after, seen

    first = (jnp.zeros((), jnp.int32), _unmade(decoding, AHEAD, *token.shape), token, state, seen)
    _, choices, token, state, seen = jax.lax.while_loop(lambda carry: carry[0] < count, step, first)
    return choices, token, state, seen


def _put(at: Array, rows: Array, row: Array) -> Array:
    return rows.at[at].set(row)


def _unmade(decoding: Decoding, *rows: int) -> Choice:
    tokens = jnp.zeros(rows, jnp.int32)
    if decoding.alternatives is None:
        return Choice(tokens, None, None, None)
    likeliest = (*rows, decoding.alternatives)
    return Choice(
        tokens, jnp.zeros(rows, jnp.float32), jnp.zeros(likeliest, jnp.int32), jnp.zeros(likeliest, jnp.float32)
    )


@functools.partial(jax.jit, static_argnames=("config", "decoding"), donate_argnames=("state", "seen"))
def verify(
    config: Config,
    decoding: Decoding,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    knobs: Knobs,
    seen: Bool[Array, "B V"] | None,
) -> tuple[Choice, Int[Array, " B"], DecodeState, Bool[Array, "B V"] | None]:
    """Take tokens of each row into the state, choose at each as `decode` would, and take back what does not stand.

    Args:
        config: the model.
        decoding: as for `decode`.
        params: the weights.
        tokens: the pending token of each row and guesses of what follows it.
        valid: which of them are real; they stand at the front, and a row without any stands still.
        state: as for `decode`, with slack for T - 1 tokens.
        knobs: as for `decode`.
        seen: as for `decode`.

    Returns:
        The choice at each of the B * T tokens; how many choices of each row stand, its first that was not guessed
        included; the state and the seen tokens after those that they followed.
    """
    size = tokens.shape[1]
    hidden, after = transformer.forward(config, params, tokens, state, valid=valid)
    assert after is not None
    at_each = None
    if seen is not None:
        rows, places = jnp.arange(tokens.shape[0])[:, None], jnp.arange(size)
        new = jnp.zeros((*tokens.shape, seen.shape[-1]), bool).at[rows, places, tokens].set(valid)
        at_each = seen[:, None] | jnp.logical_or.accumulate(new, axis=1)
    lengths = state.lengths[:, None] + jnp.arange(1, size + 1)
    choice = choose(
        config,
        decoding,
        params,
        hidden.reshape(-1, hidden.shape[-1]),
        lengths.reshape(-1),
        jax.tree.map(functools.partial(jnp.repeat, repeats=size), knobs),
        None if at_each is None else at_each.reshape(-1, at_each.shape[-1]),
    )
    guessed = valid[:, 1:] & (tokens[:, 1:] == choice.token.reshape(tokens.shape)[:, :-1])
    taken = valid[:, 0] * (1 + jnp.sum(jnp.cumprod(guessed, axis=1), axis=1))
    if seen is not None and at_each is not None:
        last = jnp.take_along_axis(at_each, jnp.maximum(taken - 1, 0)[:, None, None], axis=1)[:, 0]
        seen = jnp.where((taken > 0)[:, None], last, seen)
    return choice, taken, DecodeState(state.lengths + taken, after.layers), seen


@functools.partial(jax.jit, static_argnames=("config", "decoding"))
def choose(
    config: Config,
    decoding: Decoding,
    params: ModelWeights,
    hidden: Float[Array, "B D"],
    lengths: Int[Array, " B"],
    knobs: Knobs,
    seen: Bool[Array, "B V"] | None,
) -> Choice:
    """Choose the token that follows.

    Log-probabilities are the model's own: before penalty, temperature and filters.
    """
    numbers = sampling.uniform(knobs.seed, lengths)

    def of_few(largest: Array, ids: Array) -> Array:
        return ids[:, 0] if decoding.few == 1 else sampling.sample_few(largest, ids, knobs, numbers)

    count = None if decoding.few is None else min(decoding.few, decoding.vocabulary)
    if count is not None and seen is None and decoding.alternatives is None:
        chosen = of_few(*transformer.top_logits(config, params, hidden, decoding.vocabulary, count))
        return Choice(chosen, None, None, None)
    logits = _real(transformer.logits(config, params, hidden), decoding.vocabulary)
    scores = logits if seen is None else sampling.penalise(logits, seen, knobs.repetition_penalty)
    chosen = sampling.sample(scores, knobs, numbers) if count is None else of_few(*weights.largest(scores, count))
    if decoding.alternatives is None:
        return Choice(chosen, None, None, None)
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    top, top_tokens = jax.lax.top_k(logits, decoding.alternatives)
    logprob = jnp.take_along_axis(logits, chosen[:, None], axis=-1) - log_total
    return Choice(chosen, logprob[:, 0], top_tokens, top - log_total)


@functools.partial(jax.jit, static_argnames=("config", "vocabulary"), donate_argnames="state")
def score(
    config: Config,
    vocabulary: int,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    pictured: Pictured | None = None,
) -> tuple[Float[Array, "B T"], DecodeState]:
    """Take a chunk into the state and give the log-probability of each token's successor."""
    hidden, after = transformer.forward(config, params, tokens, state, valid=valid, pictured=pictured)
    assert after is not None

    def logprobs(part: tuple[Array, Array]) -> Array:
        hidden, target = part
        logits = _real(transformer.logits(config, params, hidden), vocabulary)
        return jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    flat_hidden = hidden.reshape(-1, SCORED_ROWS, hidden.shape[-1])
    result = jax.lax.map(logprobs, (flat_hidden, targets.reshape(-1, SCORED_ROWS)))
    return result.reshape(tokens.shape), after


def _real(logits: Float[Array, "B V"], vocabulary: int) -> Float[Array, "B V"]:
    """Rows of the table beyond the tokenizer are padding: they can neither be chosen nor take probability."""
    if vocabulary >= logits.shape[-1]:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)
