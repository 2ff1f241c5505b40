"""Gradients do not depend on how a batch is divided, packed or padded, nor on what is kept for them."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright.model.stack import Remat
from gemwright.train import lora
from gemwright.train.objectives.objective import NEXT_TOKEN, Sequences
from gemwright.train.optimizer import make_optimizer
from gemwright.train.recipe import Recipe
from gemwright.train.step import accumulate, start, take_step
from tests.train.cases import Case, cases, largest_difference, make_case, make_documents, to_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")
SAME = 2e-5
"""Tolerance of gradients that differ in the order of sums, relative to their norm."""
BFLOAT16 = 0.06
"""Tolerance of the whole gradient in bfloat16, relative to its norm: some roundings of 2^-9 in each of the layers."""
LENGTHS = ((9, 30, 2, 14), (25, 1, 33), (59,), (40, 19))
"""Documents that are packed into sequences of 60 tokens: several windows, with uneven numbers of labels."""


def _documents() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    return [make_documents(lengths, seed=seed) for seed, lengths in enumerate(LENGTHS)]


def _trained(case: Case, recipe: Recipe) -> tuple[Any, Any]:
    """Return trained and frozen weights, of which every factor has a gradient."""
    if recipe.method == "full":
        return case.weights, None
    random = np.random.default_rng(1)

    def shake(leaf: jax.Array) -> jax.Array:
        return leaf + jnp.asarray(0.1 * random.standard_normal(leaf.shape), jnp.float32)

    frozen = jax.tree.map(lambda leaf: leaf.astype(recipe.dtype), case.weights)
    return jax.tree.map(shake, lora.init(case.config, recipe.rank, seed=0)), frozen


def _gradient(case: Case, recipe: Recipe, batch: Sequences) -> tuple[float, Any]:
    """Return the sum of losses and its gradient."""
    trained, frozen = _trained(case, recipe)
    run = jax.jit(functools.partial(accumulate, case.config, recipe))
    sums, gradient = run(trained, frozen, batch)
    return float(sums.loss), gradient


@pytest.mark.parametrize("name", cases("gemma2", "recurrentgemma"))
def test_packed_documents_are_independent(name: str):
    """One document in a sequence, with its padding, gives what all of them give packed."""
    case, recipe = make_case(name), Recipe(method="full")
    packed = _gradient(case, recipe, to_batch(_documents()))
    single = _gradient(case, recipe, to_batch([[document] for row in _documents() for document in row]))
    np.testing.assert_allclose(packed[0], single[0], rtol=1e-6)
    assert largest_difference(packed[1], single[1]) < SAME


@pytest.mark.parametrize("method", ["lora", "full"])
def test_parts_of_a_batch_give_one_gradient(method: Any):
    case, rows = make_case("gemma"), _documents()
    batch = to_batch([*rows, *rows[:2], [], rows[0][:1]])  # one sequence is padding
    assert len(set(jnp.sum(batch.learned, axis=1).tolist())) > 4
    found = {
        parts: _gradient(case, Recipe(method=method, rank=4, batch_size=8, accumulation=parts), batch)
        for parts in (1, 2, 8)
    }
    for parts in (2, 8):
        np.testing.assert_allclose(found[parts][0], found[1][0], rtol=1e-6)
        assert largest_difference(found[parts][1], found[1][1]) < SAME


@pytest.mark.parametrize("name", cases("gemma"))
def test_what_is_kept_does_not_change_the_gradient(name: str):
    case, batch = make_case(name), to_batch(_documents()[:2])
    kept: tuple[Remat, ...] = ("none", "products", "layers")
    found = [_gradient(case, Recipe(rank=4, remat=remat), batch) for remat in kept]
    for total, gradient in found[1:]:
        np.testing.assert_allclose(total, found[0][0], rtol=1e-6)
        assert largest_difference(gradient, found[0][1]) < SAME


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", cases("gemma"))
def test_bfloat16_is_near_float32(name: str, method: Any):
    case, batch = make_case(name), to_batch(_documents())
    recipe = Recipe(method=method, rank=4, alpha=4.0, accumulation=2)
    total, gradient = _gradient(case, recipe, batch)
    rounded_total, rounded = _gradient(case, replace(recipe, dtype="bfloat16"), batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded))
    np.testing.assert_allclose(rounded_total, total, rtol=0.01)
    whole = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(value)]) for value in (rounded, gradient)]
    assert 1e-4 < largest_difference(*whole) < BFLOAT16


def test_a_step_without_labels_or_with_an_infinite_weight_changes_nothing():
    case, recipe = make_case("gemma"), Recipe(rank=4, warmup=0, ema=0.5)
    adapters = lora.init(case.config, 4, seed=0)
    optimizer = make_optimizer(recipe, 10)
    state = start(optimizer, adapters, recipe)
    step = jax.jit(functools.partial(take_step, case.config, recipe, optimizer))
    batch = to_batch(_documents())
    silent = replace(batch, learned=jnp.zeros_like(batch.learned))
    after, measures = step(state, case.weights, silent)
    assert (float(measures.loss), float(measures.norm)) == (0.0, 0.0)
    _assert_equal(after.trained, state.trained)
    broken = replace(case.weights, final_norm=case.weights.final_norm.at[3].set(jnp.inf))
    after, measures = step(state, broken, batch)
    assert not np.isfinite(measures.loss)
    _assert_equal(after, state)
    after, measures = step(state, case.weights, batch)
    average = jax.tree.map(lambda old, new: 0.5 * (old + new), state.trained, after.trained)
    assert largest_difference(jax.tree.leaves(after.average)[0], jax.tree.leaves(average)[0]) < 1e-6


def _assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_no_weight_becomes_float32_in_a_bfloat16_step():
    """The products of the gradient have bfloat16 operands, too."""
    case, recipe = make_case("gemma"), Recipe(rank=4, dtype="bfloat16")
    trained, frozen = _trained(case, recipe)
    batch = to_batch(_documents())
    text = jax.jit(functools.partial(accumulate, case.config, recipe)).lower(trained, frozen, batch).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line and "bf16" in line.split(" : ")[1]]
    assert len(products) > 30
    mixed = [line for line in products if "f32" in line.split(" : ")[1].split("->")[0]]
    assert not mixed, mixed[0]


def test_the_weights_are_made_of_trained_and_frozen_ones():
    case, recipe = make_case("gemma"), Recipe(method="full", dtype="bfloat16")
    params = NEXT_TOKEN.assemble(recipe, case.weights, None)
    assert params.embed.dtype == jnp.bfloat16
