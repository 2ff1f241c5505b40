"""The compiled programs of a model: prefill a chunk, decode tokens, verify draft tokens, score a chunk."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from gemwright import sharding, tree, weights
from gemwright.generate import sampling
from gemwright.generate.sampling import BatchedSampling, TokenCounts
from gemwright.generate.slots import Slots
from gemwright.generate.token_bias import TokenBias
from gemwright.generate.tournament import Tournament, TournamentKeys, TournamentState
from gemwright.model import transformer
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState, divide
from gemwright.model.transformer import SoftTokens
from gemwright.typing import Array, Bool, Float, Int

MAX_STEPS_PER_CALL = 8
"""Maximum number of tokens per sequence in one call of `decode`."""
SCORED_TOKENS = 32
"""Number of tokens whose logits are in memory at once while scoring: 32 MB for the largest vocabulary."""
NO_TOKEN = -1
"""The token of a sequence that has ended."""
NOT_FINITE = -2
"""The token of a sequence whose logits are not finite."""


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def on_mesh(program: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a program that runs on the mesh of the weights among its arguments."""

    @functools.wraps(program)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        mesh = next(sharding.mesh_of(arg.final_norm) for arg in args if isinstance(arg, ModelWeights))
        if mesh is None:
            return program(*args, **kwargs)
        with sharding.use(mesh):
            return program(*args, **kwargs)

    return run


class DecodeOptions(NamedTuple):
    """The static options of a compiled decoding program.

    Attributes:
        vocabulary: Number of real ids; higher ones are padding of the table and never chosen.
        candidates: Number of largest logits to sample from; None for all.
        penalty: Some sequence has a penalty.
        top_logprobs: Number of likeliest tokens to report at each step with their log-probabilities; None reports no
            log-probabilities at all, not even of the chosen token.
    """

    vocabulary: int
    candidates: int | None
    penalty: bool
    top_logprobs: int | None


@tree.node
class SampledTokens:
    """One decoding step: the token of each sequence, its log-probability, and the likeliest tokens with theirs.

    A token is `NO_TOKEN` if the sequence has ended and `NOT_FINITE` if its logits are not finite; the other values are
    then undefined.
    """

    token: Int[Array, " B"]
    logprob: Float[Array, " B"] | None
    top_tokens: Int[Array, "B A"] | None
    top_logprobs: Float[Array, "B A"] | None


@on_mesh
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
    """Add a chunk of each sequence's prompt to the state, after the tokens in it.

    With `last`, also return the hidden state of each sequence's last token, for `choose`.
    """
    hidden, after = forward(config, params, tokens, valid, state, soft_tokens)
    return after, _last(hidden, valid) if last else None


_Carry: TypeAlias = tuple[Array, SampledTokens, Array, Array, DecodeState, TokenCounts | None, TournamentState | None]


@on_mesh
@functools.partial(jax.jit, static_argnames=("config", "options"), donate_argnames="slots")
def decode(
    config: Config,
    options: DecodeOptions,
    params: ModelWeights,
    slots: Slots,
    count: Int[Array, ""],
    bias: TokenBias | None = None,
    watermark: TournamentKeys | None = None,
) -> tuple[SampledTokens, Slots]:
    """Add each sequence's last token to its state and choose the next, up to `count <= MAX_STEPS_PER_CALL` times.

    Several tokens per call save a small model the host's work for each. A sequence ends when nothing remains, at a stop
    id, which is returned, where its logits are not finite, and where `bias` leaves it no token; decoding ends when all
    sequences have.

    Args:
        config: the model.
        options: the static options.
        params: the weights.
        slots: the sequences; donated.
        count: maximum number of tokens; 1 if the mask of some sequence depends on its next token.
        bias: restrictions, of all tokens of the call alike. With one, and without, is a program each.
        watermark: marks the sequences, whose slots have `contexts`; likewise.

    Returns:
        The tokens, [MAX_STEPS_PER_CALL, B], `NO_TOKEN` beyond `count` and after a sequence's end; the slots.
    """
    batched, stop_ids = slots.sampling, slots.stop_ids

    def goes_on(carry: _Carry) -> Array:
        return (carry[0] < count) & jnp.any(carry[3] > 0)

    def step(carry: _Carry) -> _Carry:
        at, choices, token, remaining, state, counts, contexts = carry
        active = remaining > 0
        hidden, after = forward(config, params, token[:, None], active[:, None], state)
        if counts is not None:
            sequences = jnp.arange(token.shape[0])
            counts = replace(counts, generated=counts.generated.at[sequences, token].add(active.astype(jnp.int32)))
        limited = None if bias is None else bias.ban(stop_ids, at < bias.min_tokens)
        tournament = None
        if watermark is not None and contexts is not None:
            tournament, contexts = watermark.begin(watermark.append(contexts, token), active)
        choice = choose(config, options, params, hidden[:, 0], after.lengths, batched, counts, limited, tournament)
        chosen = jnp.where(active, choice.token, NO_TOKEN)
        choices = jax.tree.map(functools.partial(_put, at), choices, replace(choice, token=chosen))
        ended = (chosen < 0) | jnp.any(chosen[:, None] == stop_ids, axis=1)
        at = at + 1
        token, remaining = jnp.where(active, chosen, token), jnp.where(ended, 0, remaining - 1)
        return at, choices, token, remaining, after, counts, contexts

    choices = _unmade(options, MAX_STEPS_PER_CALL, *slots.token.shape)
    at = jnp.zeros((), jnp.int32)
    first = (at, choices, slots.token, slots.remaining, slots.state, slots.counts, slots.contexts)
    _, choices, token, remaining, state, counts, contexts = jax.lax.while_loop(goes_on, step, first)
    return choices, Slots(state, token, remaining, stop_ids, batched, counts, contexts)


def forward(
    config: Config,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    soft_tokens: SoftTokens | None = None,
) -> tuple[Float[Array, "B T D"], DecodeState]:
    """Run the decoder on a chunk, and return the states after it.

    A sequence without valid tokens keeps its state, and its cache is not read.
    """
    lengths = jnp.where(jnp.any(valid, axis=1), state.lengths, 0)  # no length: kernels skip the cache
    shown = DecodeState(lengths, state.layers)
    hidden, after = transformer.forward(config, params, tokens, shown, valid=valid, soft_tokens=soft_tokens)
    assert after is not None
    return hidden, divide(DecodeState(state.lengths + jnp.sum(valid, axis=1), after.layers))


def _put(at: Array, steps: Array, step: Array) -> Array:
    return steps.at[at].set(step)


def _unmade(options: DecodeOptions, *shape: int) -> SampledTokens:
    tokens = jnp.full(shape, NO_TOKEN, jnp.int32)
    if options.top_logprobs is None:
        return SampledTokens(tokens, None, None, None)
    likeliest = (*shape, options.top_logprobs)
    return SampledTokens(
        tokens, jnp.zeros(shape, jnp.float32), jnp.zeros(likeliest, jnp.int32), jnp.zeros(likeliest, jnp.float32)
    )


@on_mesh
@functools.partial(jax.jit, static_argnames=("config", "options"), donate_argnames="slots")
def verify(
    config: Config,
    options: DecodeOptions,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    slots: Slots,
) -> tuple[SampledTokens, Int[Array, " B"], Slots]:
    """Add tokens of each sequence to its state, choose after each as `decode` does, and roll back those not accepted.

    Args:
        config: the model.
        options: as for `decode`.
        params: the weights.
        tokens: each sequence's last token, followed by draft tokens.
        valid: which of them are real; padding is behind them, and a sequence of padding keeps its state.
        slots: as for `decode`, with slack for T - 1 tokens. Their `token`, `remaining` and `stop_ids` are not used.

    Returns:
        The choice after each of the B * T tokens; how many choices of each sequence count, which is one more than its
        accepted draft tokens; the slots after the accepted tokens.
    """
    size, state, counts = tokens.shape[1], slots.state, slots.counts
    hidden, after = forward(config, params, tokens, valid, state)
    at_each = None if counts is None else _counts_after_each(counts, tokens, valid)
    lengths = state.lengths[:, None] + jnp.arange(1, size + 1)
    choice = choose(
        config,
        options,
        params,
        hidden.reshape(-1, hidden.shape[-1]),
        lengths.reshape(-1),
        jax.tree.map(functools.partial(jnp.repeat, repeats=size), slots.sampling),
        None if at_each is None else jax.tree.map(_flat, at_each),
    )
    accepted = valid[:, 1:] & (tokens[:, 1:] == choice.token.reshape(tokens.shape)[:, :-1])
    taken = valid[:, 0] * (1 + jnp.sum(jnp.cumprod(accepted, axis=1), axis=1))
    if counts is not None and at_each is not None:
        last = jnp.take_along_axis(at_each.generated, jnp.maximum(taken - 1, 0)[:, None, None], axis=1)[:, 0]
        counts = replace(counts, generated=jnp.where((taken > 0)[:, None], last, counts.generated))
    return choice, taken, replace(slots, state=DecodeState(state.lengths + taken, after.layers), counts=counts)


def _flat(leaf: Array) -> Array:
    return leaf.reshape(-1, leaf.shape[-1])


def _counts_after_each(counts: TokenCounts, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> TokenCounts:
    """Return the counts after each of the tokens, with leaves [B, T, V]."""
    shape = (*tokens.shape, counts.generated.shape[-1])
    sequences, places = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    new = jnp.zeros(shape, jnp.int32).at[sequences, places, tokens].set(valid.astype(jnp.int32))
    generated = counts.generated[:, None] + jnp.cumsum(new, axis=1)
    return TokenCounts(jnp.broadcast_to(counts.in_prompt[:, None], shape), generated)


@on_mesh
@functools.partial(jax.jit, static_argnames=("config", "options"))
def choose(
    config: Config,
    options: DecodeOptions,
    params: ModelWeights,
    hidden: Float[Array, "B D"],
    lengths: Int[Array, " B"],
    batched: BatchedSampling,
    counts: TokenCounts | None,
    bias: TokenBias | None = None,
    tournament: Tournament | None = None,
) -> SampledTokens:
    """Choose the next token of each sequence from the hidden state of its last.

    The token is `NOT_FINITE` if that gives no numbers, and `NO_TOKEN` if `bias` allows none. `bias.min_tokens` is not
    used, as stop ids are not known here: see `TokenBias.ban`. Log-probabilities are the model's own, before bias,
    penalties, temperature and filters. `tournament` marks what is sampled from `options.candidates`.
    """
    numbers = sampling.uniform(batched.seed, lengths)

    def from_top(largest: Array, ids: Array) -> Array:
        if options.candidates == 1:
            return ids[:, 0]
        return sampling.sample_from_top(largest, ids, batched, numbers, tournament)

    def checked(chosen: Array, largest: Array) -> Array:
        # The largest logit does not show a NaN where comparisons skip it; hidden states do.
        return jnp.where(jnp.isfinite(largest) & jnp.all(jnp.isfinite(hidden), axis=-1), chosen, NOT_FINITE)

    count = None if options.candidates is None else min(options.candidates, options.vocabulary)
    if count is not None and counts is None and bias is None and options.top_logprobs is None:
        largest, ids = transformer.top_logits(config, params, hidden, options.vocabulary, count)
        return SampledTokens(checked(from_top(largest, ids), largest[:, 0]), None, None, None)
    logits = real_logits(transformer.logits(config, params, hidden), options.vocabulary)
    scores = logits if bias is None else bias.apply(logits)
    scores = scores if counts is None else sampling.penalise(scores, counts, batched)
    chosen = sampling.sample(scores, batched, numbers) if count is None else from_top(*weights.largest(scores, count))
    if bias is not None:
        chosen = jnp.where(jnp.max(scores, axis=-1) > -jnp.inf, chosen, NO_TOKEN)
    token = checked(chosen, jnp.max(logits, axis=-1))
    if options.top_logprobs is None:
        return SampledTokens(token, None, None, None)
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    top, top_tokens = jax.lax.top_k(logits, options.top_logprobs)
    logprob = jnp.take_along_axis(logits, chosen[:, None], axis=-1) - log_total
    return SampledTokens(token, logprob[:, 0], top_tokens, top - log_total)


@tree.node
class TokenScores:
    """The log-probability of each token's successor, and the likeliest successors, best first, with theirs."""

    logprob: Float[Array, "B T"]
    top_tokens: Int[Array, "B T A"]
    top_logprobs: Float[Array, "B T A"]


@on_mesh
@functools.partial(jax.jit, static_argnames=("config", "vocabulary", "top_logprobs"), donate_argnames="state")
def score(
    config: Config,
    vocabulary: int,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
    soft_tokens: SoftTokens | None = None,
    top_logprobs: int = 0,
) -> tuple[TokenScores, DecodeState, Float[Array, "B D"]]:
    """Add a chunk to the state, as `prefill` does, and score each token's successor.

    Args:
        config: the model.
        vocabulary: number of real ids.
        params: the weights.
        tokens: of each sequence.
        targets: the successor of each token; any id where there is none, whose score is then to be ignored.
        valid: which tokens are real; padding is behind them.
        state: donated.
        soft_tokens: of images among the tokens.
        top_logprobs: number of likeliest successors to report.

    Returns:
        The scores; the state; the hidden state of each sequence's last token, for `choose`.
    """
    hidden, after = forward(config, params, tokens, valid, state, soft_tokens)

    def scores(part: tuple[Array, Array]) -> TokenScores:
        hidden, target = part
        logits = real_logits(transformer.logits(config, params, hidden), vocabulary)
        log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        top, top_tokens = weights.largest(logits, top_logprobs)
        logprob = jnp.take_along_axis(logits, target[:, None], axis=-1) - log_total
        return TokenScores(logprob[:, 0], top_tokens, top - log_total)

    flat_hidden = hidden.reshape(-1, SCORED_TOKENS, hidden.shape[-1])
    result = jax.lax.map(scores, (flat_hidden, targets.reshape(-1, SCORED_TOKENS)))
    return jax.tree.map(functools.partial(_unflatten, tokens.shape), result), after, _last(hidden, valid)


def _unflatten(shape: tuple[int, ...], leaf: Array) -> Array:
    return leaf.reshape(*shape, *leaf.shape[2:])


def _last(hidden: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Return the hidden state of the last valid token of each sequence, of the first if none is."""
    return hidden[jnp.arange(len(hidden)), jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)]


def real_logits(logits: Float[Array, "B V"], vocabulary: int) -> Float[Array, "B V"]:
    """Mask the logits of padding ids, which are neither chosen nor have a probability."""
    logits = sharding.constrain(logits, "batch", None)
    if vocabulary >= logits.shape[-1]:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)
