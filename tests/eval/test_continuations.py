"""Likelihoods of continuations equal those of whole texts, one by one."""

import numpy as np
import pytest

import gemwright
from gemwright.generate.continuations import Likelihood, score_continuations
from tests.serve.conftest import tiny_model  # noqa: F401  # a model of each kind of decoder

pytestmark = pytest.mark.usefixtures("quick_compilation")


def expected(model: gemwright.Model, context: list[int], continuation: list[int]) -> float:
    return float(np.sum(model.engine.score([[*context, *continuation]])[0][len(context) - 1 :], dtype=np.float64))


def test_likelihoods(tiny_model: gemwright.Model):  # noqa: F811
    """Few-shot texts with a shared beginning, answers of one and more tokens, texts that are beginnings of others."""
    random = np.random.default_rng(3)

    def ids(count: int) -> list[int]:
        return random.integers(10, tiny_model.engine.vocabulary - 10, count).tolist()

    examples = [2, *ids(90)]
    contexts = [[*examples, *ids(count)] for count in (3, 20, 1, 40)] + [[2], [2, *ids(10)], examples]
    answers = [ids(1), ids(1), ids(7), ids(33)]
    pairs = [(context, answer) for answer in answers for context in contexts]
    reported: dict[int, Likelihood] = {}
    found = score_continuations(tiny_model.engine, pairs, reported.update)
    assert found == [reported[index] for index in range(len(pairs))]
    for pair, likelihood in zip(pairs, found, strict=True):
        np.testing.assert_allclose(likelihood.logprob, expected(tiny_model, *pair), rtol=2e-5, atol=2e-5)


def test_greedy_continuations(tiny_model: gemwright.Model):  # noqa: F811
    prompt = [2, 20, 30, 40]
    text = tiny_model.generate(prompt, max_tokens=5, temperature=0.0).tokens
    other = [*text[:-1], (text[-1] + 1) % 100]
    found = score_continuations(tiny_model.engine, [(prompt, text), (prompt, text[:1]), (prompt, other)])
    assert [likelihood.is_greedy for likelihood in found] == [True, True, False]
