"""Optimizers against torch.optim, learning rates at their edges, and which weights decay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from gemwright import tree
from gemwright.model.stack import stacked_specs
from gemwright.train import lora
from gemwright.train.optimizer import decayed, learning_rate, make_optimizer
from gemwright.train.recipe import Recipe
from tests.train.cases import make_case

RECIPE = Recipe(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.1, clip=0.7)


def _weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal((5, 7)).astype(np.float32) for name in ("a", "b")}


def _gradients(step: int) -> dict[str, np.ndarray]:
    """Return gradients of which some are clipped: their norm is between 0.1 and 4."""
    random = np.random.default_rng(step + 1)
    return {name: (random.standard_normal((5, 7)) * 10 ** random.uniform(-2, -0.3)).astype(np.float32) for name in "ab"}


def test_adamw_with_clipping_equals_torch():
    ours: Any = jax.tree.map(jnp.asarray, _weights())
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in _weights().items()}
    reference = torch.optim.AdamW(theirs.values(), lr=0.01, weight_decay=0.1)
    optimizer = make_optimizer(RECIPE, 20)
    state, clipped = optimizer.init(ours), 0
    for step in range(20):
        for name, gradient in _gradients(step).items():
            theirs[name].grad = torch.tensor(gradient)
        clipped += torch.nn.utils.clip_grad_norm_(theirs.values(), 0.7).item() > 0.7
        reference.step()
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, _gradients(step)), state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, parameter in theirs.items():
            np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=0, atol=2e-6)
    assert 3 < clipped < 17


def test_adafactor_lowers_a_loss_with_a_smaller_state():
    recipe = Recipe(optimizer="adafactor", learning_rate=0.01, schedule="constant", warmup=0)
    weights = jnp.ones((256, 256))
    optimizer = make_optimizer(recipe, 10)
    state = optimizer.init(weights)
    size = {name: sum(leaf.size for leaf in jax.tree.leaves(state)) for name, state in
            (("adafactor", state), ("adamw", make_optimizer(RECIPE, 10).init(weights)))}  # fmt: skip
    assert size["adafactor"] < size["adamw"] / 50
    value = jax.value_and_grad(lambda weights: jnp.sum(jnp.square(weights)))
    first = float(value(weights)[0])
    for _ in range(10):
        updates, state = optimizer.update(value(weights)[1], state, weights)
        weights = optax.apply_updates(weights, updates)
    assert float(value(weights)[0]) < 0.9 * first


def _rates(steps: int, **settings: Any) -> np.ndarray:
    rate = learning_rate(Recipe(learning_rate=1.0, **settings), steps)
    return np.asarray([float(rate(step)) for step in range(steps)])


def test_a_warm_up_grows_from_above_zero_to_the_peak():
    for schedule in ("cosine", "constant", "rsqrt"):
        found = _rates(40, schedule=schedule, warmup=0.25, cooldown=0.1)
        np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10, rtol=1e-6)
        assert found.max() == found[9]


def test_schedules_end_as_they_say():
    cosine = _rates(41, schedule="cosine", warmup=1 / 41)
    assert cosine[0] == 1.0
    np.testing.assert_allclose([cosine[20], cosine[-1]], [0.55, 0.1], rtol=1e-6)
    assert np.all(np.diff(cosine) < 0)
    assert set(_rates(40, schedule="constant", warmup=0)) == {1.0}
    slow = _rates(100, schedule="rsqrt", warmup=0.04, cooldown=0.2)
    np.testing.assert_allclose(slow[[3, 15, 63]], [1.0, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(slow[80:], np.sqrt(4 / np.arange(81, 101)) * np.arange(20, 0, -1) / 21, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "one", "two"),
    [("cosine", [1.0], [1.0, 0.1]), ("constant", [1.0], [1.0, 1.0]), ("rsqrt", [0.5], [1.0, 0.5 * 0.5**0.5])],
)
def test_runs_of_one_and_two_steps(schedule: str, one: list[float], two: list[float]):
    np.testing.assert_allclose(_rates(1, schedule=schedule), one, rtol=1e-6)
    np.testing.assert_allclose(_rates(2, schedule=schedule), two, rtol=1e-6)


def test_only_matrices_decay():
    config = make_case("recurrentgemma").config
    abstract = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), stacked_specs(config))
    found = tree.flatten(decayed(abstract))
    names = {path.rpartition(".")[2] for path, decays in found.items() if decays}
    assert names == {"embed", "x", "y", "out", "q", "k", "v", "o", "gate", "up", "down"}
    assert all(tree.flatten(decayed(lora.init(config, 2, seed=0))).values())
