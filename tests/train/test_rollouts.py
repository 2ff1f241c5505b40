"""Rollouts come from the distribution that is trained: their log-probabilities are those of transformers' model."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import chisquare

from gemwright.generate import programs
from gemwright.train import lora
from gemwright.train.objectives.rollouts import Rollouts, Sampler, seeds_of, share_layers
from gemwright.train.recipe import Recipe
from tests.tiny.pairs import VOCAB
from tests.train.cases import Case, make_case

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOGPROB = 1e-4
"""Absolute tolerance of a log-probability in float32."""
PROMPTS = ([2, 5, 6], [2, 9, 8, 7, 3, 40, 41, 42, 43, 44])
"""The second is longer than the local window."""
FULL = Recipe(method="full")


def _logprobs(case: Case, ids: list[int], temperature: float) -> np.ndarray:
    """Return transformers' log-probability of each id but the first."""
    with torch.no_grad():
        logits = case.theirs(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    return log_softmax(logits / temperature, axis=-1)[np.arange(len(ids) - 1), ids[1:]]


def _roll_out(
    case: Case, temperature: float = 1.0, prompts: Any = PROMPTS, copies: int = 3, most: int = 12
) -> Rollouts:
    sampler = Sampler(case.config, FULL, None, 24, temperature)
    seeds = seeds_of(0, 1, list(range(len(prompts))), copies)
    return sampler.roll_out(case.weights, prompts, copies, seeds, most, [7, 50])


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        ("gemma", 0.7),
        pytest.param("gemma3", 0.7, marks=pytest.mark.slow),
        pytest.param("gemma2", 1.3, marks=pytest.mark.slow),
        pytest.param("recurrentgemma", 1.0, marks=pytest.mark.slow),
    ],
)
def test_logprobs_are_those_of_transformers_at_the_temperature(name: str, temperature: float):
    case = make_case(name)
    found = _roll_out(case, temperature)
    for row, length in enumerate(found.lengths.tolist()):
        prompt, reply = PROMPTS[row // 3], found.tokens[row, :length].tolist()
        expected = _logprobs(case, [*prompt, *reply], temperature)[len(prompt) - 1 :]
        np.testing.assert_allclose(found.logprobs[row, :length], expected, atol=LOGPROB)
        assert found.finished[row] == (reply[-1] in (7, 50))
        assert not {7, 50} & set(reply[:-1])
        assert length == 12 or found.finished[row]
        assert not found.tokens[row, length:].any()
    assert len({tuple(tokens) for tokens in found.tokens.tolist()}) == 6


@pytest.mark.slow
def test_tokens_are_drawn_from_the_whole_distribution():
    case, count = make_case("gemma3"), 4000
    found = _roll_out(case, 1.5, PROMPTS[:1], count, 1)
    with torch.no_grad():
        logits = case.theirs(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double().numpy()
    expected = count * np.exp(log_softmax(logits / 1.5))
    counts = np.bincount(found.tokens[:, 0], minlength=VOCAB)
    likely = expected > 5
    assert likely.sum() > 20
    assert chisquare(counts[likely], expected[likely] * counts[likely].sum() / expected[likely].sum()).pvalue > 1e-3


@pytest.mark.slow
def test_frozen_weights_are_shared_and_steps_compile_nothing_new():
    case, recipe = make_case("gemma3"), Recipe(rank=2)
    shared = share_layers(case.weights)
    stacked = case.weights.stages[0][0].mixer.q
    assert shared.layers[0].mixer.q.unsafe_buffer_pointer() == stacked.unsafe_buffer_pointer()  # pyright: ignore
    sampler, compiled = Sampler(case.config, recipe, case.weights, 24), list[tuple[int, ...]]()
    adapters = lora.init(case.config, 2, seed=0)
    replies: list[Rollouts] = []
    for scale in (0.0, 1.0, 0.0):
        trained = {path: lora.Factors(of.a, scale * 0.1 + of.b) for path, of in adapters.items()}
        replies.append(sampler.roll_out(trained, PROMPTS, 2, seeds_of(0, 1, [4, 9], 2), 6, [7]))
        counted = programs.prefill, programs.decode, programs.choose
        compiled.append(tuple(program.__wrapped__._cache_size() for program in counted))  # pyright: ignore
    assert compiled[0] == compiled[1] == compiled[2]
    assert not np.array_equal(replies[0].tokens, replies[1].tokens)
    jax.tree.map(np.testing.assert_array_equal, vars(replies[0]), vars(replies[2]))


@pytest.mark.slow
def test_a_reply_depends_on_its_seed_alone_and_seeds_on_step_record_and_number():
    case = make_case("gemma3")
    together, alone = _roll_out(case), _roll_out(case, prompts=PROMPTS[:1])
    np.testing.assert_array_equal(together.tokens[:3], alone.tokens)
    seeds = [seed for step in (1, 2) for seed in seeds_of(0, step, [3, 4], 2)]
    assert len({*seeds, *seeds_of(1, 1, [3, 4], 2)}) == 12
    assert seeds_of(0, 2, [4], 2) == seeds[6:]
