"""The filters against transformers' logits processors and a sort in float64, and the draws against probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gemwright.errors import GemwrightError
from gemwright.generate import sampling
from gemwright.generate.sampling import CANDIDATES, BatchedSampling, Sampling, TokenCounts, penalise, uniform

sample = jax.jit(sampling.sample)
draw = jax.jit(sampling._draw)
many = settings(max_examples=60, deadline=None, derandomize=True)
SHAPE = (3, 700)
"""Of the logits of small batches, alike so that one program serves them; two blocks of the running sums."""


def _theirs(logits: np.ndarray, settings: Sampling, seen: list[int]) -> np.ndarray:
    """The probabilities after transformers' processors, in the order in which its `generate` applies them."""
    steps: list[Any] = [TemperatureLogitsWarper(float(settings.temperature))]
    if settings.repetition_penalty != 1.0:
        steps.insert(0, RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        steps.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p > 0.0:
        steps.append(MinPLogitsWarper(settings.min_p))
    scores = LogitsProcessorList(steps)(torch.tensor([seen]), torch.tensor(logits[None]))
    return torch.softmax(scores.double(), dim=-1)[0].numpy()


def _kept(logits: np.ndarray, rows: list[Sampling], seen: list[int]) -> np.ndarray:
    """Which tokens of each row our own filters leave."""
    present = np.isin(np.arange(logits.shape[-1]), seen)[None].repeat(len(rows), 0)
    return np.asarray(_filtered(jnp.asarray(logits), jnp.asarray(present), BatchedSampling.stack(rows)))


@jax.jit
def _filtered(logits: jax.Array, present: jax.Array, settings: BatchedSampling) -> jax.Array:
    scores = penalise(logits, TokenCounts(present, jnp.zeros(present.shape, jnp.int32)), settings)
    below = scores - jnp.max(scores, axis=-1, keepdims=True)
    return sampling._kept(scores, jnp.exp(below / settings.temperature[:, None]), settings)


settings_of_a_row = st.builds(
    Sampling,
    temperature=st.floats(0.3, 3.0),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 40, 300, 399, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.05, 0.3, 0.7, 0.9, 0.99]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.8, 1.3]),
)


@pytest.mark.parametrize("vocabulary", [50, 400])
@many
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 6.0), st.lists(settings_of_a_row, min_size=3, max_size=3))
def test_the_same_tokens_are_kept(vocabulary: int, seed: int, spread: float, rows: list[Sampling]):
    """Rows with settings of their own in one batch; a token may differ only where its edge is a rounding away."""
    numbers = np.random.default_rng(seed)
    logits = np.stack([spread * numbers.standard_normal(vocabulary) for _ in rows]).astype(np.float32)
    seen = numbers.integers(0, vocabulary, 10).tolist()
    ours = _kept(logits, rows, seen)
    for row, settings_ in enumerate(rows):
        theirs = _theirs(logits[row], settings_, seen) > 0
        if not np.array_equal(ours[row], theirs):
            assert _is_on_the_edge(logits[row], settings_, seen, theirs), (settings_, ours[row].sum(), theirs.sum())


def _is_on_the_edge(logits: np.ndarray, settings_: Sampling, seen: list[int], theirs: np.ndarray) -> bool:
    """Whether a change of top-p or min-p by a few float32 roundings makes transformers itself keep other tokens."""

    def kept(factor: float) -> np.ndarray:
        moved = {name: min(getattr(settings_, name) * factor, 1.0) for name in ("top_p", "min_p")}
        return _theirs(logits, Sampling(**{**vars(settings_), **moved}), seen) > 0

    return not all(np.array_equal(theirs, kept(1 + change)) for change in (-3e-6, 3e-6))


def _by_sorting(scores: np.ndarray, row: Sampling, slack: float) -> np.ndarray:
    """Which tokens are kept, in float64; top-p and min-p are more generous by the part `slack`."""
    order = np.argsort(-scores, kind="stable")
    best = scores[order].astype(np.float64)
    mass = np.exp((best - best[0]) / np.float32(row.temperature))
    least = best[min(row.top_k or len(best), len(best)) - 1]
    mass[best < least] = 0.0
    if row.top_p < 1.0:
        before = np.cumsum(mass) - mass
        least = max(least, best[before < np.float32(row.top_p) * (1 + slack) * mass.sum()][-1])
    kept = np.zeros(len(best), bool)
    kept[order] = (best >= least) & (mass >= np.float32(row.min_p) * (1 - slack))
    return kept


def _hard(kind: str, numbers: np.random.Generator, size: int) -> np.ndarray:
    logits = 3 * numbers.standard_normal(size)
    if kind == "ties":
        logits = np.round(logits) + 0.0
    if kind == "equal":
        logits[:] = -2.5
    if kind == "nearly equal":
        logits = 7 + 1e-6 * logits
    if kind == "tiny":
        logits = 1e-30 * logits
    if kind == "one huge":
        logits[size // 3] = 1e30
    if kind == "mostly impossible":
        logits[numbers.random(size) < 0.8] = -np.inf
        logits[0] = 0.0
    return logits.astype(np.float32)


@pytest.mark.parametrize("kind", ["ties", "equal", "nearly equal", "tiny", "one huge", "mostly impossible"])
@settings(many, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.lists(settings_of_a_row, min_size=3, max_size=3))
def test_equal_and_extreme_logits(kind: str, seed: int, rows: list[Sampling]):
    """Equal logits are kept or dropped together; else as a sort in float64 has it, but for 3e-6 of top-p and min-p."""
    numbers = np.random.default_rng(seed)
    logits = np.stack([_hard(kind, numbers, SHAPE[1]) for _ in rows])
    seen = numbers.integers(0, SHAPE[1], 10).tolist()
    ours = _kept(logits, rows, seen)
    for row, settings_ in enumerate(rows):
        scores, penalty = logits[row].copy(), np.float32(settings_.repetition_penalty)
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        assert np.all(_by_sorting(scores, settings_, -3e-6) <= ours[row]), settings_
        assert np.all(ours[row] <= _by_sorting(scores, settings_, 3e-6)), settings_


def test_flat_logits_keep_many():
    """A nucleus of 360 of 400 nearly equal tokens, and a k of 300."""
    logits = np.linspace(0, 1e-3, 400, dtype=np.float32)
    rows = [Sampling(temperature=1.0, top_p=0.9), Sampling(temperature=1.0, top_k=300), Sampling(temperature=1.0)]
    kept = _kept(np.stack([logits] * 3), rows, [])
    assert CANDIDATES < 300
    for row, settings_ in enumerate(rows):
        np.testing.assert_array_equal(kept[row], _theirs(logits, settings_, [0]) > 0)
    assert kept.sum(axis=-1).tolist()[1:] == [300, 400]


@pytest.mark.parametrize(
    "settings_",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=12),
        Sampling(temperature=1.5, top_p=0.8),
        Sampling(temperature=3.0, top_p=0.95),
        Sampling(temperature=2.0, min_p=0.02),
        Sampling(temperature=2.0, top_k=300, top_p=0.9),
        Sampling(temperature=1.2, top_k=30, top_p=0.95, min_p=0.02),
    ],
    ids=str,
)
@pytest.mark.parametrize("vocabulary", [40, 1100])  # within one block, and over three of them
def test_draws_follow_the_probabilities(settings_: Sampling, vocabulary: int):
    """Chi-square at a significance of 1e-4, with a fixed seed."""
    logits = (2.0 * np.random.default_rng(5).standard_normal(vocabulary)).astype(np.float32)
    exact = _theirs(logits, settings_, [0])
    draws, batch = 8000, 1000
    numbers = np.random.default_rng(6).random((draws, 2)).astype(np.float32).reshape(-1, batch, 2)
    rows = jnp.broadcast_to(jnp.asarray(logits), (batch, vocabulary))
    drawn = np.concatenate(
        [sample(rows, BatchedSampling.stack([settings_] * batch), jnp.asarray(part)) for part in numbers]
    )
    counts = np.bincount(drawn, minlength=vocabulary)
    assert np.all(counts[exact == 0] == 0)
    common = exact * draws >= 10
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(exact[common], exact[~common].sum()) * draws
    full = expected > 0
    assert stats.chisquare(observed[full], expected[full]).pvalue > 1e-4


def test_the_uniform_numbers_are_uniform_and_belong_to_seed_and_position():
    seeds, positions = np.divmod(np.arange(4000), 40)
    numbers = np.asarray(uniform(jnp.asarray(seeds, jnp.uint32), jnp.asarray(positions)))
    assert stats.kstest(numbers[:, 0], "uniform").pvalue > 1e-4
    assert stats.kstest(numbers[:, 1], "uniform").pvalue > 1e-4
    assert abs(stats.spearmanr(*numbers.T).statistic) < 0.06
    assert len(np.unique(numbers)) > 7980
    some = [7, 1234, 3999]
    again = uniform(jnp.asarray(seeds[some], jnp.uint32), jnp.asarray(positions[some]))
    np.testing.assert_array_equal(again, numbers[some])


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-24])
def test_the_ends_of_the_interval_give_a_kept_token(number: float):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    rows = [Sampling(temperature=1.0, top_k=3), Sampling(temperature=1.0, top_p=0.1), Sampling(temperature=1.0)]
    tokens = np.asarray(sample(logits, BatchedSampling.stack(rows), jnp.full((3, 2), number)))
    kept = [_by_sorting(np.asarray(part), row, 0.0).nonzero()[0] for part, row in zip(logits, rows, strict=True)]
    assert tokens[0] == kept[0][0 if number == 0 else -1]
    assert tokens[1:].tolist() == [part[-1 if number == 0 else 0] for part in kept[1:]]


def test_impossible_tokens_are_never_drawn():
    logits = jnp.full(SHAPE, -jnp.inf).at[:, 7].set(0.0).at[:, 600].set(-1.0)
    settings_ = BatchedSampling.stack([Sampling(temperature=1.0)] * 3)
    numbers = np.arange(132, dtype=np.float32).reshape(-1, 3, 2) / 132
    drawn = np.concatenate([sample(logits, settings_, jnp.asarray(part)) for part in numbers])
    assert set(drawn.tolist()) == {7, 600}


@many
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-45, 1e-38, 1e-20, 1e-7, 1.0]),
    st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=6, max_size=6),
)
def test_what_is_drawn_has_mass(seed: int, small: float, numbers: list[float]):
    """However sums are rounded, where most have no mass and some very little."""
    of = np.random.default_rng(seed)
    mass = (of.random(SHAPE) * of.choice([0.0, 1.0, small], SHAPE, p=[0.8, 0.1, 0.1])).astype(np.float32)
    mass[:, of.integers(0, SHAPE[1])] = 1.0
    drawn = np.asarray(draw(mass, np.array(numbers, np.float32).reshape(3, 2)))
    assert np.all(mass[range(3), drawn] > 0)


def test_unlikely_tokens_of_a_block_are_told_apart():
    """512 tokens of probability 1e-9 each: a single number of 23 bits would give some four of them, and no others."""
    mass = np.repeat(np.array([[1.0] + [0.0] * 511 + [1e-9] * 512], np.float32), 512, axis=0)
    inside = (np.arange(512) + 0.5) / 512
    drawn = draw(mass, np.stack([np.zeros(512), inside], axis=1).astype(np.float32))
    assert drawn.tolist() == list(range(1023, 511, -1))


def test_greedy_takes_the_lowest_id_of_equals():
    logits = jnp.zeros(SHAPE).at[0, 690].set(1.0).at[0, 31].set(1.0).at[1, 699].set(-1.0).at[2, 5:].set(1.0)
    assert sample(logits, BatchedSampling.stack([Sampling()] * 3), jnp.full((3, 2), 0.99)).tolist() == [31, 0, 5]


def test_a_tiny_temperature_is_greedy():
    logits = jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE), jnp.float32)
    drawn = sample(logits, BatchedSampling.stack([Sampling(temperature=1e-30)] * 3), jnp.full((3, 2), 0.5))
    np.testing.assert_array_equal(drawn, np.argmax(logits, axis=-1))


def test_rows_of_a_batch_are_drawn_as_alone():
    one = jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE[1]), jnp.float32)
    rows = [
        Sampling(),
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_k=20, top_p=0.9),
        Sampling(temperature=1.0, top_k=400, top_p=0.9),
        Sampling(temperature=2.0, top_p=0.95),
        Sampling(temperature=0.5, min_p=0.1),
        Sampling(temperature=0.5, top_p=0.5, min_p=0.1),
    ]
    logits, numbers = jnp.tile(one, (len(rows), 1)), jnp.tile(jnp.asarray([0.37, 0.61]), (len(rows), 1))
    together = sample(logits, BatchedSampling.stack(rows), numbers).tolist()
    alone = [int(sample(logits, BatchedSampling.stack([row] * len(rows)), numbers)[0]) for row in rows]
    assert together == alone
    assert together[0] == together[1] == int(one.argmax())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float):
    with pytest.raises(GemwrightError, match=name):
        Sampling(**{name: value})


def test_penalties_are_those_of_openai():
    """Of generated tokens alone, a multiple of their count and a constant; after the repetition penalty, as in vLLM."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 9)).astype(np.float32)
    in_prompt, generated = random.random((2, 9)) < 0.5, random.integers(0, 3, (2, 9)).astype(np.int32)
    rows = [
        Sampling(presence_penalty=0.7, frequency_penalty=-0.3),
        Sampling(repetition_penalty=1.5, frequency_penalty=2.0),
    ]
    expected = logits.astype(float)
    for scores, row, prompt, counts in zip(expected, rows, in_prompt, generated, strict=True):
        for token, count in enumerate(counts):
            if prompt[token] or count:
                divides = scores[token] > 0
                scores[token] *= 1 / row.repetition_penalty if divides else row.repetition_penalty
            if count:
                scores[token] -= row.frequency_penalty * count + row.presence_penalty
    counts = TokenCounts(jnp.asarray(in_prompt), jnp.asarray(generated))
    found = penalise(jnp.asarray(logits), counts, BatchedSampling.stack(rows))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties_have_the_bounds_of_openai(name: str):
    for value in (-2.1, 2.1, float("nan")):
        with pytest.raises(GemwrightError, match=f"{name} is .* between -2.0 and 2.0"):
            Sampling(**{name: value})
