"""The compiled programs of a model: feed a chunk of a prompt, decode one token, verify several, score a chunk."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemwright import tree, weights
from gemwright.generate import sampling
from gemwright.generate.sampling import BatchedSampling
from gemwright.model import transformer
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState
from gemwright.model.transformer import SoftTokens
from gemwright.typing import Array, Bool, Float, Int

MAX_STEPS_PER_CALL = 8
"""Tokens of a row that one call of `decode` makes at most."""
SCORED_ROWS = 32
"""Positions whose logits stand in memory together while a text is scored: 32 MB for the largest vocabulary."""


class DecodeOptions(NamedTuple):
    """What is fixed when a decoding program is compiled.

    Attributes:
        vocabulary: Ids at and above it are padding of the table and never chosen.
        candidates: How many of the largest logits decide; None for all of them.
        penalty: Some row has a repetition penalty.
        top_logprobs: How many of the likeliest tokens to report at each step with their log-probabilities; None
            reports no log-probabilities at all, not even that of the chosen token.
    """

    vocabulary: int
    candidates: int | None
    penalty: bool
    top_logprobs: int | None


@tree.node
class SampledTokens:
    """One decoding step: the token of each row, its log-probability, and the likeliest tokens with theirs."""

    token: Int[Array, " B"]
    logprob: Float[Array, " B"] | None
    top_tokens: Int[Array, "B A"] | None
    top_logprobs: Float[Array, "B A"] | None


@functools.partial(jax.jit, static_argnames=("config", "last"), donate_argnames="state")
def prefill(
    config: Config,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    soft_tokens: SoftTokens | None = None,
    *,
    last: bool = False,
) -> tuple[DecodeState, Float[Array, "B D"] | None]:
    """Take a chunk of each row's prompt into the state.

    Where it is the last of some row, what the last token of each row gives comes too, for `choose`.
    """
    hidden, after = transformer.forward(config, params, tokens, state, valid=valid, soft_tokens=soft_tokens)
    assert after is not None
    ends = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
    return after, hidden[jnp.arange(tokens.shape[0]), ends] if last else None


@functools.partial(jax.jit, static_argnames=("config", "options"), donate_argnames=("state", "seen"))
def decode(
    config: Config,
    options: DecodeOptions,
    params: ModelWeights,
    token: Int[Array, " B"],
    state: DecodeState,
    batched: BatchedSampling,
    seen: Bool[Array, "B V"] | None,
    count: Int[Array, ""],
) -> tuple[SampledTokens, Int[Array, " B"], DecodeState, Bool[Array, "B V"] | None]:
    """Take one token of each row into the state and choose the next, `count` times, at most `MAX_STEPS_PER_CALL`.

    Several at a time spare a small model the host's work for each.

    Returns:
        The choices, [MAX_STEPS_PER_CALL, B] each, of which the first `count` are real; the last token of each row, which the state
        does not hold yet; the state and the seen tokens.
    """

    def step(
        carry: tuple[Array, SampledTokens, Array, DecodeState, Array | None],
    ) -> tuple[Array, SampledTokens, Array, DecodeState, Array | None]:
        at, choices, token, state, seen = carry
        hidden, after = transformer.forward(config, params, token[:, None], state)
        assert after is not None
        if seen is not None:
            seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
        choice = choose(config, options, params, hidden[:, 0], after.lengths, batched, seen)
        choices = jax.tree.map(functools.partial(_put, at), choices, choice)
        return at + 1, choices, choice.token, after, seen

    first = (jnp.zeros((), jnp.int32), _unmade(options, MAX_STEPS_PER_CALL, *token.shape), token, state, seen)
    _, choices, token, state, seen = jax.lax.while_loop(lambda carry: carry[0] < count, step, first)
    return choices, token, state, seen


def _put(at: Array, rows: Array, row: Array) -> Array:
    return rows.at[at].set(row)


def _unmade(options: DecodeOptions, *rows: int) -> SampledTokens:
    tokens = jnp.zeros(rows, jnp.int32)
    if options.top_logprobs is None:
        return SampledTokens(tokens, None, None, None)
    likeliest = (*rows, options.top_logprobs)
    return SampledTokens(
        tokens, jnp.zeros(rows, jnp.float32), jnp.zeros(likeliest, jnp.int32), jnp.zeros(likeliest, jnp.float32)
    )


@functools.partial(jax.jit, static_argnames=("config", "options"), donate_argnames=("state", "seen"))
def verify(
    config: Config,
    options: DecodeOptions,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    batched: BatchedSampling,
    seen: Bool[Array, "B V"] | None,
) -> tuple[SampledTokens, Int[Array, " B"], DecodeState, Bool[Array, "B V"] | None]:
    """Take tokens of each row into the state, choose at each as `decode` would, and take back what does not stand.

    Args:
        config: the model.
        options: as for `decode`.
        params: the weights.
        tokens: the pending token of each row and guesses of what follows it.
        valid: which of them are real; they stand at the front, and a row without any stands still.
        state: as for `decode`, with slack for T - 1 tokens.
        batched: as for `decode`.
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
        options,
        params,
        hidden.reshape(-1, hidden.shape[-1]),
        lengths.reshape(-1),
        jax.tree.map(functools.partial(jnp.repeat, repeats=size), batched),
        None if at_each is None else at_each.reshape(-1, at_each.shape[-1]),
    )
    guessed = valid[:, 1:] & (tokens[:, 1:] == choice.token.reshape(tokens.shape)[:, :-1])
    taken = valid[:, 0] * (1 + jnp.sum(jnp.cumprod(guessed, axis=1), axis=1))
    if seen is not None and at_each is not None:
        last = jnp.take_along_axis(at_each, jnp.maximum(taken - 1, 0)[:, None, None], axis=1)[:, 0]
        seen = jnp.where((taken > 0)[:, None], last, seen)
    return choice, taken, DecodeState(state.lengths + taken, after.layers), seen


@functools.partial(jax.jit, static_argnames=("config", "options"))
def choose(
    config: Config,
    options: DecodeOptions,
    params: ModelWeights,
    hidden: Float[Array, "B D"],
    lengths: Int[Array, " B"],
    batched: BatchedSampling,
    seen: Bool[Array, "B V"] | None,
) -> SampledTokens:
    """Choose the token that follows.

    Log-probabilities are the model's own: before penalty, temperature and filters.
    """
    numbers = sampling.uniform(batched.seed, lengths)

    def from_top(largest: Array, ids: Array) -> Array:
        return ids[:, 0] if options.candidates == 1 else sampling.sample_from_top(largest, ids, batched, numbers)

    count = None if options.candidates is None else min(options.candidates, options.vocabulary)
    if count is not None and seen is None and options.top_logprobs is None:
        chosen = from_top(*transformer.top_logits(config, params, hidden, options.vocabulary, count))
        return SampledTokens(chosen, None, None, None)
    logits = _real(transformer.logits(config, params, hidden), options.vocabulary)
    scores = logits if seen is None else sampling.penalise(logits, seen, batched.repetition_penalty)
    chosen = sampling.sample(scores, batched, numbers) if count is None else from_top(*weights.largest(scores, count))
    if options.top_logprobs is None:
        return SampledTokens(chosen, None, None, None)
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    top, top_tokens = jax.lax.top_k(logits, options.top_logprobs)
    logprob = jnp.take_along_axis(logits, chosen[:, None], axis=-1) - log_total
    return SampledTokens(chosen, logprob[:, 0], top_tokens, top - log_total)


@functools.partial(jax.jit, static_argnames=("config", "vocabulary"), donate_argnames="state")
def score(
    config: Config,
    vocabulary: int,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    soft_tokens: SoftTokens | None = None,
) -> tuple[Float[Array, "B T"], DecodeState]:
    """Take a chunk into the state and give the log-probability of each token's successor."""
    hidden, after = transformer.forward(config, params, tokens, state, valid=valid, soft_tokens=soft_tokens)
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
