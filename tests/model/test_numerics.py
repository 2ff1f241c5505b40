"""Where bfloat16 runs compute in float32: the result is the exact one, rounded once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemwright import ops, weights
from gemwright.kernels import attention
from gemwright.kernels.attention import attend

ONCE = 2.0**-8 * 1.001
"""Largest relative error of one rounding to bfloat16, and a little for float32 arithmetic."""


def _bfloat16(*shape: int, scale: float = 1.0) -> Any:
    return jnp.asarray(scale * np.random.default_rng(0).standard_normal(shape), jnp.bfloat16)


def _exact(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _is_rounded_once(found: Any, exact: np.ndarray, atol: float = 0.0) -> None:
    assert found.dtype == jnp.bfloat16
    # Float32 errors tip a value over the edge between two bfloat16 numbers now and then; a second rounding, often.
    assert np.mean(_exact(found) == _exact(jnp.asarray(exact, jnp.bfloat16))) > 0.99
    np.testing.assert_allclose(_exact(found), exact, rtol=ONCE, atol=atol)


def test_rms_norm():
    x, gain = _bfloat16(50, 64, scale=3.0), _bfloat16(64)
    wide = _exact(x)
    exact = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6) * (1 + _exact(gain))
    _is_rounded_once(ops.rms_norm(x, gain, 1e-6), exact)


def test_rms_norm_of_values_whose_squares_overflow_float16():
    x = jnp.full((1, 8), 60_000.0, jnp.bfloat16)
    np.testing.assert_allclose(_exact(ops.rms_norm(x, jnp.zeros(8, jnp.bfloat16), 1e-6)), 1.0, rtol=ONCE)


@pytest.mark.parametrize(("base", "scale"), [(1e4, 1.0), (1e6, 8.0)])
def test_rope_at_positions_that_bfloat16_cannot_tell_apart(base: float, scale: float):
    positions = np.array([[0, 1, 511, 8190, 8191, 8192, 32_767]])
    x = _bfloat16(1, 7, 3, 32)
    angle = positions[:, :, None, None] / scale * base ** (-np.arange(16) / 16)
    first, second = np.split(_exact(x), 2, axis=-1)
    exact = np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], axis=-1
    )
    # The float32 product of position and frequency is off by at most two roundings: 32767 * 2^-23.
    _is_rounded_once(
        ops.rotate(x, ops.rotation(jnp.asarray(positions), x.shape[-1], base, scale)), exact, atol=32_767 * 2.0**-23 * 4
    )


def test_rope_in_float32_stays_with_the_exact_angle():
    positions = np.array([[1, 8191, 32_767, 131_071]])
    x = jnp.ones((1, 4, 1, 64), jnp.float32)
    angle = positions[:, :, None, None] / 8.0 * 1e6 ** (-np.arange(32) / 32)
    exact = np.concatenate([np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)], axis=-1)
    found = np.asarray(ops.rotate(x, ops.rotation(jnp.asarray(positions), x.shape[-1], 1e6, 8.0)), np.float64)
    bound = 1e-6 + positions[:, :, None, None] / 8.0 * 2.0**-21
    assert np.all(np.abs(found - exact) < bound)


def test_soft_cap():
    x = _bfloat16(1000, scale=100.0)
    _is_rounded_once(ops.soft_cap(x, 30.0), 30.0 * np.tanh(_exact(x) / 30.0))
    assert ops.soft_cap(x, None) is x


def test_gelu_is_the_tanh_form():
    x = np.linspace(-5, 5, 2001, dtype=np.float32)
    tanh_form = torch.nn.functional.gelu(torch.tensor(x), approximate="tanh").numpy()
    erf_form = torch.nn.functional.gelu(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ops.gelu(jnp.asarray(x)), tanh_form, rtol=0, atol=1e-6)
    assert np.abs(tanh_form - erf_form).max() > 4e-4
    half = jnp.asarray(x[x > -2], jnp.bfloat16)  # further out, 1 + tanh is a small difference of float32 numbers
    wide = _exact(half)
    exact = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    _is_rounded_once(ops.gelu(half), exact, atol=1e-6)


def _attention_inputs(dtype: Any) -> tuple[Any, Any, Any, np.ndarray]:
    numbers = np.random.default_rng(3)
    q, k, v = (
        jnp.asarray(numbers.standard_normal(shape), dtype) for shape in [(2, 5, 4, 8), (2, 2, 9, 8), (2, 2, 9, 8)]
    )
    mask = numbers.random((2, 5, 9)) < 0.5
    mask[..., 0] = True
    return q, k, v, mask


@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_against_its_definition(cap: float | None):
    """Query head n reads key/value head n // 2; the cap precedes the mask."""
    q, k, v, mask = _attention_inputs(jnp.float32)
    wide_q, wide_k, wide_v = _exact(q), _exact(k), _exact(v)
    expected = np.zeros((2, 5, 4, 8))
    for row in range(2):
        for query in range(5):
            for head in range(4):
                score = wide_k[row, head // 2] @ wide_q[row, query, head]
                score = score if cap is None else cap * np.tanh(score / cap)
                mass = np.where(mask[row, query], np.exp(score), 0.0)
                expected[row, query, head] = mass / mass.sum() @ wide_v[row, head // 2]
    np.testing.assert_allclose(attend(q, k, v, jnp.asarray(mask), cap), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_masked_key_has_no_weight(dtype: Any, cap: float | None):
    q, k, v, _ = _attention_inputs(dtype)
    mask = jnp.broadcast_to(jnp.arange(9) < 6, (2, 5, 9))
    hidden = (jnp.arange(9) >= 6)[:, None]
    other = attend(q, jnp.where(hidden, 100.0, k).astype(dtype), jnp.where(hidden, 1e4, v).astype(dtype), mask, cap)
    np.testing.assert_array_equal(_exact(attend(q, k, v, mask, cap)), _exact(other))


def test_softmax_of_bfloat16_is_computed_in_float32():
    """Scores near 100 lie 0.5 apart in bfloat16: only float32 scores keep the weights of a softmax."""
    numbers = np.random.default_rng(4)
    q = jnp.asarray(numbers.standard_normal((1, 4, 1, 16)) + 3.0, jnp.bfloat16)
    k = jnp.asarray(numbers.standard_normal((1, 1, 12, 16)) * 0.1 + 2.0, jnp.bfloat16)
    v = jnp.asarray(numbers.standard_normal((1, 1, 12, 16)), jnp.bfloat16)
    scores = _exact(q)[0, :, 0] @ _exact(k)[0, 0].T
    assert scores.min() > 64
    mass = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = mass / mass.sum(axis=-1, keepdims=True) @ _exact(v)[0, 0]
    found = _exact(attend(q, k, v, jnp.ones((1, 4, 12), bool), None))[0, :, 0]
    # The weights are rounded to bfloat16 once before they meet the values, and the sum once after.
    np.testing.assert_allclose(found, exact, rtol=0, atol=2 * ONCE * np.abs(_exact(v)).max())


def test_an_id_outside_the_table_is_not_another_row():
    found = np.asarray(weights.rows(jnp.ones((5, 3)), jnp.array([[4, 5], [0, 100]])))
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[:, 0]).all()


@pytest.mark.slow
def test_scores_that_do_not_fit_are_computed_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """The same numbers and gradients, with a remainder."""
    numbers = np.random.default_rng(3)
    q, keys, values = (
        jnp.asarray(numbers.standard_normal(s), jnp.float32) for s in [(2, 11, 4, 8), (2, 2, 9, 8), (2, 2, 9, 8)]
    )
    mask = jnp.asarray(numbers.random((2, 11, 9)) < 0.7)

    def total(q: Any, keys: Any) -> Any:
        return jnp.sum(jnp.sin(attend(q, keys, values, mask, 5.0)))

    whole = attend(q, keys, values, mask, 5.0), *jax.grad(total, (0, 1))(q, keys)
    monkeypatch.setattr(attention, "SCORES", 3 * 2 * 4 * 9)
    assert "scan" in str(jax.make_jaxpr(attend, static_argnums=4)(q, keys, values, mask, 5.0))
    parts = attend(q, keys, values, mask, 5.0), *jax.grad(total, (0, 1))(q, keys)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(one).max())
