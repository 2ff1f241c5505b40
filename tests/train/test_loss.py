"""The chunked cross-entropy against one over all logits at once."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright import ops, tree
from gemwright.errors import GemwrightError
from gemwright.kernels import choice
from gemwright.model import loss
from gemwright.model.loss import cross_entropy, token_losses
from gemwright.weights import LoraTensor, matmul
from tests.tiny.config import CONFIGS
from tests.train.cases import largest_difference, relative

pytestmark = pytest.mark.usefixtures("quick_compilation")
CAPPED = CONFIGS["capped"]
PLAIN = replace(CAPPED, final_soft_cap=None)
TOKENS, WIDTH = 23, CAPPED.width
SAME = 2e-6
"""Tolerance of losses and gradients that differ in the order of sums, relative to their norm."""


@pytest.fixture(params=[1, 4, 23, 64])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens at a time: one, a part of the last chunk, all, and more than there are."""
    monkeypatch.setattr(loss, "LOGITS", request.param * CAPPED.vocab)


def _arrays(dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return a head, hidden states, targets and which of them are labeled: 10 of 23."""
    random = np.random.default_rng(0)
    head, hidden = random.standard_normal((CAPPED.vocab, WIDTH)), 2 * random.standard_normal((TOKENS, WIDTH))
    targets, learned = random.integers(0, CAPPED.vocab, TOKENS), random.permutation(TOKENS) < 10
    targets[np.argmax(learned)] = CAPPED.vocab - 1
    return (
        *(jnp.asarray(value, dtype) for value in (head, hidden)),
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(learned),
    )


def _naive(config: Any, head: Any, hidden: Any, targets: Any, learned: Any) -> jax.Array:
    logprobs = jax.nn.log_softmax(ops.soft_cap(matmul(hidden, head, out=jnp.float32), config.final_soft_cap))
    of_target = jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]
    return -jnp.sum(jnp.where(learned, of_target, 0.0))


def _both(config: Any, head: Any, hidden: Any, *labels: Any) -> tuple[Any, Any]:
    """Return loss and gradients with respect to the head and the hidden states, ours and those of all logits."""

    def differentiate(function: Any) -> Any:
        run = jax.value_and_grad(lambda head, hidden: 3 * function(config, head, hidden, *labels), (0, 1))
        return jax.jit(run)(head, hidden)

    return differentiate(cross_entropy), differentiate(_naive)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("config", [CAPPED, PLAIN], ids=["capped", "plain"])
def test_loss_and_gradients_equal_those_of_whole_logits(config: Any):
    found, expected = _both(config, *_arrays())
    assert largest_difference(found, expected) < SAME
    assert not np.any(np.asarray(found[1][1])[~np.asarray(_arrays()[3])])


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("config", [CAPPED, PLAIN], ids=["capped", "plain"])
def test_a_frozen_head_has_the_same_loss_and_gradient(config: Any, impl: choice.Impl):
    """`auto` is the C++ kernel on a CPU."""
    head, hidden, *labels = _arrays()

    def differentiate(function: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda hidden: 3 * function(config, head, hidden, *labels)))(hidden)

    with choice.use(impl):
        found = differentiate(cross_entropy)
        value = 3 * cross_entropy(config, head, hidden, *labels)
    expected = differentiate(_naive)
    assert largest_difference(found, expected) < SAME
    assert relative(value, expected[0]) < SAME


def test_the_kernel_takes_float32_heads_only():
    head, hidden, *labels = _arrays(jnp.bfloat16)
    with choice.use("native"), pytest.raises(GemwrightError, match="not float32"):
        cross_entropy(CAPPED, head, hidden, *labels)


@pytest.mark.parametrize("count", [1, TOKENS])
def test_one_label_and_all(count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "LOGITS", 4 * CAPPED.vocab)
    head, hidden, targets, _ = _arrays()
    assert largest_difference(*_both(CAPPED, head, hidden, targets, jnp.arange(TOKENS) >= TOKENS - count)) < SAME


def test_no_label_gives_zero():
    head, hidden, targets, learned = _arrays()
    value, gradients = _both(CAPPED, head, hidden, targets, jnp.zeros_like(learned))[0]
    assert float(value) == 0.0
    assert not any(np.any(leaf) for leaf in gradients)


def test_updates_of_a_head_have_gradients_and_its_base_has_none():
    head, *arrays = _arrays()
    random = np.random.default_rng(1)
    a, b = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((3, WIDTH), (CAPPED.vocab, 3)))
    whole = LoraTensor(head, a, 0.1 * b, None)
    trained, frozen = tree.partition(whole, lambda path, _: path in ("a", "b"))

    def gradients(function: Any) -> Any:
        return jax.jit(jax.grad(lambda part: function(CAPPED, tree.combine(part, frozen), *arrays)))(trained)

    found = gradients(cross_entropy)
    assert found.base is None
    assert largest_difference(found, gradients(_naive)) < SAME


def test_a_tied_table_sums_both_gradients():
    head, _, targets, learned = _arrays()

    def gradient(function: Any) -> jax.Array:
        return jax.grad(lambda table: function(PLAIN, table, 5 * table[:TOKENS], targets, learned))(head)

    assert relative(gradient(cross_entropy), gradient(_naive)) < SAME


def test_bfloat16_sums_in_float32():
    found, expected = _both(CAPPED, *_arrays(jnp.bfloat16))
    assert [leaf.dtype for leaf in found[1]] == [jnp.bfloat16, jnp.bfloat16]
    assert relative(found[0], expected[0]) < SAME
    assert (
        largest_difference(
            *(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), side[1]) for side in (found, expected))
        )
        < 0.01
    )


def test_nan_is_not_hidden():
    head, hidden, targets, learned = _arrays()
    place = int(np.argmax(learned))
    assert np.isnan(cross_entropy(CAPPED, head, hidden.at[place, 3].set(jnp.nan), targets, learned))
    for outside in (-1, CAPPED.vocab, 2**30):
        assert np.isnan(cross_entropy(CAPPED, head, hidden, targets.at[place].set(outside), learned))


def test_tokens_without_a_label_do_not_matter():
    head, hidden, targets, learned = _arrays()
    expected = _both(CAPPED, head, hidden, targets, learned)[1]
    hidden = jnp.where(learned[:, None], hidden, jnp.nan)
    found = _both(CAPPED, head, hidden, jnp.where(learned, targets, -1), learned)[0]
    assert largest_difference(found[0], expected[0]) < SAME
    assert largest_difference(found[1], expected[1]) < SAME


def _weighted(function: Any, factors: Any) -> Any:
    """Return a loss that multiplies each token's by its factor."""

    def total(config: Any, head: Any, hidden: Any, targets: Any, learned: Any) -> jax.Array:
        return jnp.sum(factors * function(config, head, hidden, targets, learned))

    return total


def _naive_losses(config: Any, head: Any, hidden: Any, targets: Any, learned: Any) -> jax.Array:
    return jax.vmap(lambda state, target, one: _naive(config, head, state[None], target[None], one[None]))(
        hidden, targets, learned
    )


@pytest.mark.parametrize(("wanted", "impl"), [("hidden", "reference"), ("hidden", "native"), ("both", "reference")])
def test_losses_of_tokens_have_gradients_of_any_weight(wanted: str, impl: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "LOGITS", 4 * CAPPED.vocab)
    head, hidden, *labels = _arrays()
    factors = jnp.asarray(np.random.default_rng(3).standard_normal(TOKENS), jnp.float32)
    arguments = {"hidden": (1,), "both": (0, 1)}[wanted]

    def differentiate(function: Any) -> Any:
        total = _weighted(function, factors)
        return jax.jit(jax.grad(lambda head, hidden: total(CAPPED, head, hidden, *labels), arguments))(head, hidden)

    with choice.use(impl):
        assert largest_difference(differentiate(token_losses), differentiate(_naive_losses)) < SAME
        found = token_losses(CAPPED, head, hidden, *labels)
    assert relative(found, _naive_losses(CAPPED, head, hidden, *labels)) < SAME
    assert not np.any(np.asarray(found)[~np.asarray(labels[1])])


def test_losses_of_tokens_with_updates_of_a_head_and_bfloat16():
    head, hidden, *labels = _arrays(jnp.bfloat16)
    random = np.random.default_rng(1)
    a, b = (jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for shape in ((3, WIDTH), (CAPPED.vocab, 3)))
    trained, frozen = tree.partition(LoraTensor(head, a, 0.1 * b, None), lambda path, _: path in ("a", "b"))
    factors = jnp.linspace(-1.0, 2.0, TOKENS)

    def gradients(function: Any) -> Any:
        total = _weighted(function, factors)
        found = jax.grad(lambda part, hidden: total(CAPPED, tree.combine(part, frozen), hidden, *labels), (0, 1))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.jit(found)(trained, hidden))

    assert largest_difference(gradients(token_losses), gradients(_naive_losses)) < 0.01
