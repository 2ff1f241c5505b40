"""`rg_lru` against its equations in float64, in every instruction set, over odd widths, chunks, resets and padding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemwright_native as native

TOLERANCE = 2e-6
"""Relative to the largest h, of the order of 1: a few float32 roundings per step, over the steps that still matter."""


def problem(batch: int, tokens: int, blocks: int, width: int, dtype: str = "float32") -> dict[str, Any]:
    """Return arguments with fast and slowly decaying channels."""
    random = np.random.default_rng(batch + tokens + width)

    def gate() -> tuple[Any, Any]:
        weight = random.normal(size=(blocks, width, width), scale=width**-0.5)
        return weight.astype(jnp.dtype(dtype)), random.standard_normal((blocks, width)).astype(np.float32)

    R = blocks * width
    kept = 1 - 10.0 ** random.uniform(-6, -0.1, R)
    return {
        "u": random.standard_normal((batch, tokens, R)).astype(np.float32),
        "positions": np.tile(np.arange(7, 7 + tokens, dtype=np.int32), (batch, 1)),
        "initial": random.standard_normal((batch, R)).astype(np.float32),
        "input_gate": gate(),
        "decay_gate": gate(),
        "decay": np.log(np.expm1(-np.log(kept))).astype(np.float32),
    }


def equations(p: dict[str, Any]) -> Any:
    """Compute h token by token in float64 (arXiv:2402.19427, section 2.4)."""

    def gate(u: Any, name: str) -> Any:
        weight, bias = (part.astype(np.float64) for part in p[name])
        mapped = np.einsum("bni,nio->bno", u.reshape(len(u), *bias.shape), weight) + bias
        return 1 / (1 + np.exp(-mapped.reshape(u.shape)))

    u, h, steps = p["u"].astype(np.float64), p["initial"].astype(np.float64), []
    for t in range(u.shape[1]):
        log_a = -8 * gate(u[:, t], "decay_gate") * np.logaddexp(0, p["decay"].astype(np.float64))
        new, position = gate(u[:, t], "input_gate") * u[:, t], p["positions"][:, t, None]
        after = np.exp(log_a) * h + np.sqrt(-np.expm1(2 * log_a)) * new
        h = np.where(position < 0, h, np.where(position == 0, new, after))
        steps.append(h)
    return np.stack(steps, 1) if steps else u


def run(p: dict[str, Any]) -> Any:
    return np.asarray(native.rg_lru(**jax.tree.map(jnp.asarray, p)))


def check(p: dict[str, Any]) -> None:
    h, expected = run(p), equations(p)
    assert h.dtype == np.float32
    np.testing.assert_allclose(h, expected, rtol=0, atol=TOLERANCE * max(np.abs(expected).max(initial=0), 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [1, 8, 16, 37, 80, 256])
def test_single_tokens_and_chunks_equal_the_equations(isa: str, width: int, dtype: str) -> None:
    for batch, tokens in ((1, 1), (3, 1), (1, 2), (2, 23)):
        check(problem(batch, tokens, 3, width, dtype))


def test_resets_and_padding(isa: str) -> None:
    p = problem(4, 9, 2, 40)
    p["positions"] = np.array(
        [
            [*range(9)],
            [-1, -1, 0, 1, 2, 0, 0, 1, -1],
            [5, 6, 7, -1, -1, -1, -1, -1, -1],
            [-1] * 9,
        ],
        np.int32,
    )
    p["initial"][1] = np.nan  # a new sequence resets h, but padding before it does not
    h, expected = run(p), equations(p)
    assert np.isnan(h[1, :2]).all()
    assert np.isfinite(h[1, 2:]).all()
    np.testing.assert_array_equal(h[3], np.broadcast_to(p["initial"][3], h[3].shape))
    np.testing.assert_allclose(h[[0, 2]], expected[[0, 2]], rtol=0, atol=4 * TOLERANCE)
    p["initial"][1] = 0
    np.testing.assert_allclose(h[1, 2:], equations(p)[1, 2:], rtol=0, atol=4 * TOLERANCE)


def test_extremes(isa: str) -> None:
    """Gates near 0 and 1, channels that keep everything or nothing."""
    p = problem(1, 40, 2, 24)
    p["input_gate"][1][:] = np.resize([-200, -30, 30, 200], (2, 24))
    p["decay_gate"][1][:] = np.resize([200, -200, 0, 30, -30], (2, 24))
    p["decay"][:] = np.resize([-100, -20, -5, 0, 5, 40, 1e4], 48)
    check(p)


def test_nan_stays_in_its_block(isa: str) -> None:
    p = problem(2, 3, 2, 16)
    p["u"][0, 1, 5] = np.nan
    h = run(p)
    assert np.isnan(h[0, 1:, :16]).all()
    assert np.isfinite(h[0, 0]).all()
    assert np.isfinite(h[0, :, 16:]).all()
    assert np.isfinite(h[1]).all()


def test_many_tokens_are_shared_among_threads(isa: str) -> None:
    check(problem(1, 300, 2, 128))


def test_empty_arrays(isa: str) -> None:
    assert run(problem(0, 3, 2, 16)).shape == (0, 3, 32)
    assert run(problem(2, 0, 2, 16)).shape == (2, 0, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": np.zeros((2, 3, 33), np.float32)}, "u must be float32"),
        ({"u": np.zeros((2, 96), np.float32)}, "u must be float32"),
        ({"u": np.zeros((2, 3, 32), jnp.bfloat16)}, "u must be float32"),
        ({"positions": np.zeros((2, 3), np.int64)}, "positions must be int32"),
        ({"positions": np.zeros((2, 4), np.int32)}, "positions must be int32"),
        ({"initial": np.zeros((1, 32), np.float32)}, "initial must be"),
        ({"input_gate": (np.zeros((2, 16, 16), np.float16), np.zeros((2, 16), np.float32))}, "input gate must be"),
        ({"input_gate": (np.zeros((2, 16, 8), np.float32), np.zeros((2, 16), np.float32))}, "input gate must be"),
        ({"input_gate": (np.zeros((2, 16, 16), np.float32), np.zeros(32, np.float32))}, "input gate's bias must be"),
        ({"decay_gate": (np.zeros((2, 16, 16), jnp.bfloat16), np.zeros((2, 16), np.float32))}, "decay gate must be"),
        ({"decay_gate": (np.zeros((2, 16, 16), np.float32), np.zeros((2, 8), np.float32))}, "decay gate's bias must"),
        ({"decay": np.zeros(16, np.float32)}, "decay must be"),
    ],
)
def test_wrong_arguments_raise(changes: dict[str, Any], message: str) -> None:
    given = problem(2, 3, 2, 16) | changes
    with jax.enable_x64(True), pytest.raises(ValueError, match=message):
        native.rg_lru(**jax.tree.map(jnp.asarray, given))


def test_library_checks_gates_itself() -> None:
    native.isa()
    p = jax.tree.map(jnp.asarray, problem(2, 3, 2, 16))
    call = jax.ffi.ffi_call("gemwright_rg_lru_float32", jax.ShapeDtypeStruct((2, 3, 48), jnp.float32))
    arguments = (jnp.zeros((2, 3, 48)), p["positions"], p["initial"], *p["input_gate"], *p["decay_gate"], p["decay"])
    with pytest.raises(jax.errors.JaxRuntimeError, match="do not match the channels of u"):
        jax.block_until_ready(call(*arguments))
