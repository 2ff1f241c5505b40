"""The linear recurrence against a float64 loop, and its gradient against the loop's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gemwright.kernels.scan import linear_recurrence
from tests.helpers import assert_close

IMPLS = ("associative", "sequential")
LENGTHS = (1, 2, 45)


def _problem(length: int, batch: int = 3, width: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Channels that forget fast and slowly; some steps reset (a = 0), some are padding (a = 1, b = 0)."""
    numbers = np.random.default_rng(length)
    a = numbers.uniform(0.0, 1.0, (batch, length, width)) ** np.array([3.0, 1.0, 0.1, 1e-2, 1e-4])[:width]
    b = numbers.standard_normal((batch, length, width))
    kind = numbers.uniform(size=(batch, length))
    a[kind < 0.1] = 0.0
    a[kind > 0.9], b[kind > 0.9] = 1.0, 0.0
    return tuple(x.astype(np.float32) for x in (a, b, numbers.standard_normal((batch, width))))


def _loop(a: np.ndarray, b: np.ndarray, initial: np.ndarray) -> np.ndarray:
    h, steps = initial.astype(np.float64), []
    for t in range(a.shape[1]):
        h = a[:, t].astype(np.float64) * h + b[:, t]
        steps.append(h)
    return np.stack(steps, axis=1)


def _loop_gradient(a: np.ndarray, h: np.ndarray, initial: np.ndarray, h_bar: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of sum(h * h_bar) with respect to a, b and the initial state."""
    a_bar, b_bar, carried = np.zeros(a.shape), np.zeros(a.shape), np.zeros(initial.shape)
    for t in reversed(range(a.shape[1])):
        b_bar[:, t] = carried + h_bar[:, t]
        a_bar[:, t] = b_bar[:, t] * (h[:, t - 1] if t else initial)
        carried = a[:, t] * b_bar[:, t]
    return a_bar, b_bar, carried


def _check(found: Any, expected: np.ndarray, size: np.ndarray, length: int) -> None:
    """Check within one rounding per step of the sum of the terms' sizes."""
    assert found.dtype == jnp.float32
    assert_close(found, expected, 2.0**-23 * (length + 1), scale=size)


@jax.jit(static_argnums=0)
def _both(impl: Any, a: Any, b: Any, initial: Any, h_bar: Any) -> tuple[Any, Any]:
    """Return the recurrence and its vector-Jacobian product with `h_bar`."""
    h, pull = jax.vjp(lambda *args: linear_recurrence(*args, impl), a, b, initial)
    return h, pull(h_bar)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_a_float64_loop(impl: Any, length: int):
    a, b, initial = _problem(length)
    h_bar = np.random.default_rng(0).standard_normal(b.shape).astype(np.float32)
    found, gradients = _both(impl, a, b, initial, h_bar)
    expected, sizes = _loop(a, b, initial), _loop(a, np.abs(b), np.abs(initial))
    _check(found, expected, sizes, length)
    expected = _loop_gradient(a, expected, initial, h_bar)
    sizes = _loop_gradient(a, sizes, np.abs(initial), np.abs(h_bar))
    for found, value, size in zip(gradients, expected, sizes, strict=True):
        _check(found, value, size, 2 * length)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_equals_finite_differences(impl: Any):
    """In steps of 0.03, as the function is a polynomial of low degree and float32 is coarse."""
    function = jax.jit(lambda *args: linear_recurrence(*args, impl))
    check_grads(function, _problem(6), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=3e-2)


def _primitives(impl: Any, length: int) -> set[str]:
    arguments = tuple(map(jnp.asarray, _problem(length)))
    jaxpr = jax.make_jaxpr(lambda *args: linear_recurrence(*args, impl))(*arguments)
    return {word for word in ("scan[", "while[") if word in str(jaxpr)}


def test_a_request_is_obeyed_and_a_single_step_is_no_loop():
    assert _primitives("sequential", 9) == {"scan["}
    assert _primitives("associative", 9) == set()
    assert all(_primitives(impl, 1) == set() for impl in ("auto", *IMPLS))


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_auto_is_a_loop_in_programs_for_a_cpu_only(platform: str, loops: bool):
    function = jax.jit(jax.grad(lambda *args: jnp.sum(linear_recurrence(*args))))
    program = function.trace(*map(jnp.asarray, _problem(9))).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in program) == loops


def test_auto_maps_over_an_axis():
    a, b, initial = map(jnp.asarray, _problem(9))
    mapped = jax.jit(jax.vmap(lambda *args: linear_recurrence(*(x[None] for x in args))[0]))(a, b, initial)
    np.testing.assert_allclose(mapped, linear_recurrence(a, b, initial, "sequential"), rtol=1e-5, atol=1e-5)
