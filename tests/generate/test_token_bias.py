"""Masks, biases and minimum lengths, and the scores of prompts, against NumPy over plain passes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax, softmax

from gemwright.generate import programs
from gemwright.generate.engine import Engine
from gemwright.generate.programs import NO_TOKEN
from gemwright.generate.prompts import chunks
from gemwright.generate.sampling import Sampling
from gemwright.generate.token_bias import ANY, TokenBias, mask_width
from gemwright.model.state import empty_state
from gemwright.model.transformer import forward, logits
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = CONFIGS["qk-norm"]
REAL = 90
"""Number of real ids; the others are padding."""
WIDTH, SIZE = 6, mask_width(VOCAB)
PROMPTS = [random_ids(REAL, length, seed=length).tolist() for length in (5, 20, 9)]
SAMPLINGS = [Sampling(), Sampling(repetition_penalty=1.7), Sampling()]
LOGPROB = 1e-5
"""Absolute tolerance of a log-probability in float32."""
apply = jax.jit(TokenBias.apply)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CONFIG, make_weights(CONFIG, seed=3), REAL)


@jax.jit
def _logits(engine_params, tokens: jax.Array) -> jax.Array:
    hidden, _ = forward(CONFIG, engine_params, tokens)
    return logits(CONFIG, engine_params, hidden)


def _scores(engine: Engine, ids: list[int]) -> np.ndarray:
    """[T, REAL] logits of one pass over the whole text."""
    padded = np.zeros((1, 64), int)
    padded[0, : len(ids)] = ids
    return np.asarray(_logits(engine.params, padded), np.float64)[0, : len(ids), :REAL]


def _mask(allowed: set[int]) -> np.ndarray:
    """Return the words of a mask, bit by bit."""
    words = [0] * SIZE
    for token in allowed:
        words[token // 32] |= 1 << token % 32
    return np.array(words, np.uint32).view(np.int32)


def _bias(
    biases: list[dict[int, float]] | None = None,
    allowed: list[set[int] | None] | None = None,
    least: list[int] | None = None,
) -> TokenBias:
    masks = np.full((3, SIZE), ANY)
    for index, tokens in enumerate(allowed or []):
        if tokens is not None:
            masks[index] = _mask(tokens)
    return TokenBias.stack(biases or [{}] * 3, least or [0] * 3, masks, WIDTH)


_ids = st.integers(0, VOCAB - 1)
_pairs = st.dictionaries(_ids, st.floats(-100, 100, width=32), max_size=WIDTH)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=WIDTH),
        min_size=3,
        max_size=3,
    ),
    st.lists(st.none() | st.sets(st.integers(0, VOCAB - 1)), min_size=3, max_size=3),
)
def test_bias_and_mask_equal_numpy(biases: list[dict[int, float]], allowed: list[set[int] | None]):
    scores = np.random.default_rng(1).standard_normal((3, VOCAB)).astype(np.float32)
    expected = scores.copy()
    for row, bias, tokens in zip(expected, biases, allowed, strict=True):
        for token, value in bias.items():
            row[token] += np.float32(value)
        if tokens is not None:
            row[[token for token in range(VOCAB) if token not in tokens]] = -np.inf
    np.testing.assert_array_equal(apply(_bias(biases, allowed), jnp.asarray(scores)), expected)


def _run(engine: Engine, bias: TokenBias, count: int, stop_ids: tuple[int, ...] = ()):
    """Return the tokens of each prompt, up to its end, and their log-probabilities."""
    options = engine.options(SAMPLINGS, 3)
    first, slots = engine.begin(PROMPTS, SAMPLINGS, [count] * 3, options, stop_ids, bias=bias)
    later = replace(bias, min_tokens=np.maximum(bias.min_tokens - 1, 0))
    choices, _ = programs.decode(CONFIG, options, engine.params, slots, count - 1, later)
    assert first.logprobs is not None
    tokens = np.concatenate([first.tokens[None], choices.token])[:count].T
    logprobs = np.concatenate([first.logprobs[None], choices.logprob])[:count].T
    return [row[row >= 0].tolist() for row in tokens], logprobs


def _best(scores: np.ndarray, text: list[int], bias: dict[int, float], mask: set[int] | None, penalty: float) -> int:
    """Return the greedy choice after a text, in the order of vLLM: bias, mask, penalty."""
    scores = scores.copy()
    scores[list(bias)] += list(bias.values())
    scores[[i for i in range(REAL) if mask is not None and i not in mask]] = -np.inf
    seen = list(set(text))
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    return int(scores.argmax())


def test_greedy_choices_equal_numpy(engine: Engine):
    """A bias, another with a penalty, both with a mask; log-probabilities remain the model's own."""
    biases: list[dict[int, float]] = [{3: 4.0, 7: -100.0, 89: 3.0}, {4: 6.0, 5: 5.5}, {10: 50.0, 11: -2.0}]
    allowed = [None, set(range(1, REAL, 3)), {10, 11, 60, 61}]
    tokens, logprobs = _run(engine, _bias(biases, allowed), 8)
    for index, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for token, logprob in zip(tokens[index], logprobs[index], strict=True):
            own = _scores(engine, text)[-1]
            assert token == _best(own, text, biases[index], allowed[index], SAMPLINGS[index].repetition_penalty)
            np.testing.assert_allclose(logprob, log_softmax(own)[token], rtol=0, atol=LOGPROB)
            text.append(token)
        assert len(text) == len(prompt) + 8


@pytest.mark.parametrize("top_k", [0, 5])
def test_samples_follow_the_masked_probabilities(engine: Engine, top_k: int):
    """Chi-square at a significance of 1e-4, with fixed seeds."""
    allowed, prompt, draws = {1, 30, 31, 32, 64, 88}, PROMPTS[0], 3000
    hidden, lengths = np.zeros((draws, CONFIG.width), np.float32), np.full(draws, len(prompt), np.int32)
    chunk = next(chunks([prompt]))
    _, last = programs.prefill(
        CONFIG, engine.params, chunk.tokens, chunk.valid, empty_state(CONFIG, 1, 64, jnp.float32), last=True
    )
    hidden[:] = last
    samplings = [Sampling(temperature=1.5, top_k=top_k, seed=seed) for seed in range(draws)]
    masks = np.repeat(_mask(allowed)[None], draws, axis=0)
    bias = TokenBias.stack([{30: 1.0}] * draws, [0] * draws, masks, WIDTH)
    batched = programs.BatchedSampling.stack(samplings)
    options = engine.options(samplings)
    drawn = programs.choose(CONFIG, options, engine.params, hidden, lengths, batched, None, bias).token
    ids = sorted(allowed)
    scores = _scores(engine, prompt)[-1][ids] + np.array([0, 1.0, 0, 0, 0, 0])
    expected = softmax(scores / 1.5)
    if top_k:
        expected[scores < np.sort(scores)[-top_k]] = 0
        expected /= expected.sum()
    counts = np.bincount(np.searchsorted(ids, drawn), minlength=len(ids))
    assert set(np.asarray(drawn).tolist()) <= allowed
    full = expected > 0
    assert not counts[~full].any()
    assert stats.chisquare(counts[full], expected[full] * draws).pvalue > 1e-4


def test_stop_ids_are_banned_before_the_minimum(engine: Engine):
    """In the first token, within a call of several, and in a sequence of its own minimum."""
    free, _ = _run(engine, _bias(), 8)
    stops = (free[0][0], free[1][3], free[2][2])
    for least in ([0, 0, 0], [1, 4, 3], [8, 2, 8]):
        tokens, _ = _run(engine, _bias(least=least), 8, stops)
        for prompt, sampling, found, minimum in zip(PROMPTS, SAMPLINGS, tokens, least, strict=True):
            text = list(prompt)
            while len(text) < len(prompt) + 8:
                banned = stops if len(text) - len(prompt) < minimum else ()
                ban = dict.fromkeys(banned, -np.inf)
                text.append(_best(_scores(engine, text)[-1], text, ban, None, sampling.repetition_penalty))
                if text[-1] in stops:
                    break
            assert found == text[len(prompt) :]


def test_a_sequence_without_an_allowed_token_ends(engine: Engine):
    """At the first token, or later; the others go on."""
    tokens, _ = _run(engine, _bias(allowed=[set(), None, {95}]), 4)
    assert [len(found) for found in tokens] == [0, 4, 0], "an allowed padding id is no token"
    options = engine.options(SAMPLINGS, 3)
    _, slots = engine.begin(PROMPTS, SAMPLINGS, [4] * 3, options, bias=_bias())
    choices, slots = programs.decode(CONFIG, options, engine.params, slots, 8, _bias(allowed=[None, set(), None]))
    assert np.sum(np.asarray(choices.token) != NO_TOKEN, axis=0).tolist() == [3, 0, 3]
    assert np.asarray(slots.remaining).tolist() == [0, 0, 0]


def test_any_mix_runs_in_one_program(engine: Engine):
    _run(engine, _bias(), 4)
    compiled = programs.decode.__wrapped__._cache_size(), programs.choose.__wrapped__._cache_size()
    _run(engine, _bias([{1: 2.0}, {}, {}], [None, {3, 4}, None], [0, 0, 2]), 4)
    assert (programs.decode.__wrapped__._cache_size(), programs.choose.__wrapped__._cache_size()) == compiled


def test_scores_of_a_prompt_and_the_state_to_continue_from(engine: Engine):
    """Two chunks; a likeliest token has exactly one log-probability, in both places."""
    text = random_ids(REAL, 45, seed=8).tolist()
    state, found, hidden = empty_state(CONFIG, 1, 64, jnp.float32), [], None
    for chunk in chunks([text]):
        start, size = chunk.starts[0], chunk.valid.shape[1]
        targets = np.resize(np.array([*text[start + 1 : start + 1 + size], 0]), (1, size))
        part, state, hidden = programs.score(
            CONFIG, REAL, engine.params, chunk.tokens, targets, chunk.valid, state, top_logprobs=20
        )
        found.append(jax.tree.map(lambda leaf, valid=chunk.valid: np.asarray(leaf)[valid], part))
    assert len(found) == 2
    logprobs, ids, tops = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("logprob", "top_tokens", "top_logprobs")
    )
    expected = log_softmax(_scores(engine, text), axis=-1)
    np.testing.assert_allclose(logprobs[:-1], expected[range(44), text[1:]], rtol=0, atol=LOGPROB)
    np.testing.assert_array_equal(ids, np.argsort(-expected, axis=-1)[:, :20])
    np.testing.assert_allclose(tops, -np.sort(-expected, axis=-1)[:, :20], rtol=0, atol=LOGPROB)
    for place, target in enumerate(text[1:]):
        assert np.all(tops[place][ids[place] == target] == logprobs[place])
    _, other = engine.begin([text], [Sampling()], [9], engine.options([Sampling()]))
    batched = programs.BatchedSampling.stack([Sampling()])
    token = programs.choose(CONFIG, engine.options([Sampling()]), engine.params, hidden, state.lengths, batched, None)
    assert int(token.token[0]) == int(other.token[0]) == expected[-1].argmax()
    jax.tree.map(np.testing.assert_array_equal, state.lengths, other.state.lengths)
    for ours, theirs in zip(jax.tree.leaves(state.layers), jax.tree.leaves(other.state.layers), strict=True):
        np.testing.assert_allclose(ours[:, :, :45], theirs[:, :, :45], rtol=0, atol=1e-5)
