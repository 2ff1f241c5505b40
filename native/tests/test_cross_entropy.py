"""`cross_entropy` against its definition in float64, in every instruction set, over odd sizes, caps and labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemwright_native as native

TOLERANCE = 4e-6
"""Relative to the largest loss or gradient: float32 roundings of sums over the width and the vocabulary."""


def problem(tokens: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Return arguments with logits of the order of 3 and about four fifths of the tokens learned."""
    random = np.random.default_rng(tokens + width + vocabulary)
    return {
        "hidden": random.standard_normal((tokens, width)).astype(np.float32),
        "head": random.normal(size=(vocabulary, width), scale=3 * width**-0.5).astype(np.float32),
        "targets": random.integers(0, vocabulary, tokens).astype(np.int32),
        "learned": random.random(tokens) < 0.8,
    }


def run(p: dict[str, Any], cap: float | None, *, differentiate: bool = True) -> tuple[Any, Any]:
    found = native.cross_entropy(**jax.tree.map(jnp.asarray, p), cap=cap, differentiate=differentiate)
    return tuple(np.asarray(array) for array in found)


def definition(p: dict[str, Any], cap: float | None) -> tuple[Any, Any]:
    hidden, head = p["hidden"].astype(np.float64), p["head"].astype(np.float64)
    logits, slope = hidden @ head.T, 1.0
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
        slope = 1 - (logits / cap) ** 2
    log_total = np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rows = np.arange(len(hidden))
    difference = np.exp(logits - log_total)
    losses = (log_total[:, 0] - logits[rows, p["targets"]]) * p["learned"]
    difference[rows, p["targets"]] -= 1
    return losses, (difference * slope) @ head * p["learned"][:, None]


def check(p: dict[str, Any], cap: float | None) -> None:
    for found, expected in zip(run(p, cap), definition(p, cap), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(initial=1))


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize(
    ("tokens", "width", "vocabulary"),
    [(1, 1, 1), (1, 16, 7), (16, 5, 47), (17, 37, 61), (33, 321, 255), (70, 640, 300), (0, 16, 50), (5, 64, 1)],
)
def test_losses_and_gradients_equal_the_definition(
    isa: str, tokens: int, width: int, vocabulary: int, cap: float | None
) -> None:
    check(problem(tokens, width, vocabulary), cap)


def test_parts_of_a_large_vocabulary_are_added(isa: str) -> None:
    """More tokens than a block, and a vocabulary that threads divide."""
    check(problem(1060, 8, 5003), None)


def test_results_repeat() -> None:
    p = problem(70, 64, 9001)
    for first, second in zip(run(p, 30.0), run(p, 30.0), strict=True):
        np.testing.assert_array_equal(first, second)


def test_without_a_gradient_the_losses_are_the_same(isa: str) -> None:
    p = problem(19, 40, 500)
    losses, gradient = run(p, None, differentiate=False)
    assert gradient.shape == (0, 40)
    np.testing.assert_array_equal(losses, run(p, None)[0])


def test_large_logits_do_not_overflow(isa: str) -> None:
    p = problem(18, 24, 400)
    p["head"] *= 1e4
    check(p, None)


def test_tokens_that_are_not_learned_are_not_read(isa: str) -> None:
    p = problem(40, 24, 100)
    losses, gradient = run(p, None)
    p["hidden"][~p["learned"]] = np.nan
    p["targets"][~p["learned"]] = -1
    for found, expected in zip(run(p, None), (losses, gradient), strict=True):
        np.testing.assert_array_equal(found, expected)
    p["learned"][:] = False
    assert not any(np.any(array) for array in run(p, None))


def test_what_is_not_finite_stays_in_its_token(isa: str) -> None:
    p = problem(40, 24, 3000)
    p["learned"][:] = True
    p["hidden"][3, 2], p["hidden"][7, 0] = np.nan, np.inf
    p["targets"][[11, 12]] = -1, 3000
    losses, gradient = run(p, None)
    assert set(np.flatnonzero(np.isnan(losses))) == {3, 7, 11, 12}
    assert set(np.flatnonzero(np.isnan(gradient).any(axis=1))) == {3, 7}
    p["head"][2999, 5] = np.nan  # the last row, of the last tile
    assert np.isnan(run(p, None)[0]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": np.zeros((4, 6), np.float16)}, "hidden must be float32"),
        ({"hidden": np.zeros(4, np.float32)}, "hidden must be float32"),
        ({"head": np.zeros((9, 7), np.float32)}, "head must be float32"),
        ({"targets": np.zeros(4, np.uint8)}, "targets must be int32"),
        ({"learned": np.zeros(3, bool)}, "learned must be bool"),
    ],
)
def test_wrong_arguments_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(problem(4, 6, 9) | changes, None)


def test_library_checks_shapes_itself() -> None:
    native.isa()
    p = jax.tree.map(jnp.asarray, problem(4, 6, 9))
    results = [jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((4, 6), jnp.float32)]
    call = jax.ffi.ffi_call("gemwright_cross_entropy", results)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the shapes do not match"):
        jax.block_until_ready(
            call(p["hidden"], jnp.zeros((9, 5)), p["targets"], p["learned"], cap=np.float32(0)),
        )
