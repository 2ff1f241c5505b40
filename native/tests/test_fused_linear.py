"""`fused_linear` against numpy: norms, gates, residuals, several weights at once.

The tolerance is 3e-6 of the largest magnitude, which float32 norms, gates and sums of some hundred terms need. Weights
of plain floats avoid rounding to 8 bits here; block formats must equal `matmul` bit for bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemwright_native as native
from weights import random_weight

EPS = 1e-6
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * (1.0 + gain)


def gelu(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def close(ours: jax.Array, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("rows", [1, 3, 8, 70])
def test_norm_before_several_weights(isa: str, rows: int) -> None:
    x, gain = numbers(rows, 75) * 4, numbers(75)
    weights = [random_weight("F32", (out, 75), seed=out) for out in (33, 16, 5)]
    packed = [(jnp.asarray(native.repack("F32", w.raw, w.values.shape)), "F32", len(w.values)) for w in weights]
    for y, w in zip(native.fused_linear(x, packed, gain=gain, eps=EPS), weights, strict=True):
        close(y, norm(x, gain) @ w.values.T)


@pytest.mark.parametrize("rows", [1, 3, 8, 70])
def test_gate_norm_and_sum(isa: str, rows: int) -> None:
    x, gate, residual, gain = numbers(rows, 48), numbers(rows, 48) * 3, numbers(rows, 37), numbers(37)
    w = random_weight("BF16", (37, 48))
    packed = [(jnp.asarray(native.repack("BF16", w.raw, (37, 48))), "BF16", 37)]
    inner = (gelu(gate) * x) @ w.values.T
    close(native.fused_linear(x, packed, gate=gate, eps=EPS)[0], inner)
    close(native.fused_linear(x, packed, gate=gate, residual=residual, eps=EPS)[0], residual + inner)
    close(native.fused_linear(x, packed, gate=gate, post_gain=gain, eps=EPS)[0], norm(inner, gain))
    y = native.fused_linear(x, packed, gate=gate, post_gain=gain, residual=residual, eps=EPS)[0]
    close(y, residual + norm(inner, gain))


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("rows", [1, 2, 9, 70])
def test_block_formats_equal_matmul(isa: str, rows: int, activation_bits: int) -> None:
    """Weights of one encoding share the tiles of activations; other encodings have their own."""
    x, packed = numbers(rows, 256), []
    shapes = [("Q5_0", 33), ("Q6_K", 16), ("Q5_0", 21), ("Q8_0", 100), *([] if activation_bits == 16 else [("F16", 3)])]
    for seed, (encoding, out) in enumerate(shapes):
        w = random_weight(encoding, (out, 256), seed)
        packed.append((jnp.asarray(native.repack(encoding, w.raw, (out, 256))), encoding, out))
    for y, (weight, encoding, out) in zip(
        native.fused_linear(x, packed, activation_bits=activation_bits), packed, strict=True
    ):
        np.testing.assert_array_equal(
            y, native.matmul(jnp.asarray(x), weight, encoding, out, activation_bits=activation_bits)
        )


def test_non_finite_values_stay_in_their_row(isa: str) -> None:
    w = random_weight("Q8_0", (20, 64))
    packed = [(jnp.asarray(native.repack("Q8_0", w.raw, (20, 64))), "Q8_0", 20)]
    x, gain = numbers(3, 64), numbers(64)
    clean = native.fused_linear(x, packed, gain=gain, gate=x, eps=EPS)[0]
    for bad in (np.nan, np.inf, -np.inf):
        x[1, 5] = bad
        y = native.fused_linear(x, packed, gain=gain, gate=x, eps=EPS)[0]
        assert np.isnan(y[1]).all()
        np.testing.assert_array_equal(y[::2], clean[::2])


@pytest.mark.parametrize("rows", [1, 9])
def test_sixteen_bit_activations_with_gate_norm_and_sum(isa: str, rows: int) -> None:
    x, gate, residual, gain = numbers(rows, 64), numbers(rows, 64) * 3, numbers(rows, 37), numbers(37)
    w = random_weight("Q5_0", (37, 64))
    packed = [(jnp.asarray(native.repack("Q5_0", w.raw, (37, 64))), "Q5_0", 37)]
    y = native.fused_linear(x, packed, gate=gate, post_gain=gain, residual=residual, eps=EPS, activation_bits=16)[0]
    expected = residual + norm((gelu(gate) * x) @ w.values.T, gain)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_no_rows() -> None:
    w = random_weight("Q8_0", (20, 64))
    packed = [(jnp.asarray(native.repack("Q8_0", w.raw, (20, 64))), "Q8_0", 20)]
    assert native.fused_linear(numbers(0, 64), packed, gain=numbers(64), eps=EPS)[0].shape == (0, 20)


def test_gradient_equals_that_of_exact_products() -> None:
    w = random_weight("Q8_0", (24, 64))
    packed = jnp.asarray(native.repack("Q8_0", w.raw, (24, 64)))
    x, gate, residual, gain, post = (jnp.asarray(numbers(*s)) for s in ((2, 64), (2, 64), (2, 24), (64,), (24,)))

    def ours(x: jax.Array, gate: jax.Array, residual: jax.Array, gain: jax.Array, post: jax.Array) -> jax.Array:
        extra = {"gain": gain, "gate": gate, "residual": residual, "post_gain": post}
        return jnp.sum(jnp.sin(native.fused_linear(x, [(packed, "Q8_0", 24)], eps=EPS, **extra)[0]))

    def plain(x: jax.Array, gate: jax.Array, residual: jax.Array, gain: jax.Array, post: jax.Array) -> jax.Array:
        x = jax.nn.gelu(gate, approximate=True) * x
        x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + EPS) * (1 + gain)
        y = x @ w.values.T
        y = y / jnp.sqrt(jnp.mean(y**2, -1, keepdims=True) + EPS) * (1 + post)
        return jnp.sum(jnp.cos(forward) * (residual + y))

    # The outer derivative is taken at the result of the 8-bit products.
    forward = native.fused_linear(
        x, [(packed, "Q8_0", 24)], gain=gain, gate=gate, residual=residual, post_gain=post, eps=EPS
    )
    forward = forward[0]
    every = (0, 1, 2, 3, 4)
    found = jax.jit(jax.grad(ours, argnums=every))(x, gate, residual, gain, post)
    for one, other in zip(found, jax.grad(plain, argnums=every)(x, gate, residual, gain, post), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"gain": numbers(63)}, r"gain must be float32 \[64\]"),
        ({"gate": numbers(2, 63)}, r"gate must be float32 \[2, 64\]"),
        ({"residual": numbers(2, 64)}, r"residual must be float32 \[2, 20\]"),
        ({"post_gain": numbers(64)}, r"post_gain must be float32 \[20\]"),
        ({"gain": np.zeros(64, np.float64)}, "gain must be float32"),
    ],
)
def test_wrong_shapes_raise(extra: dict[str, np.ndarray], message: str) -> None:
    w = random_weight("Q8_0", (20, 64))
    packed = (jnp.asarray(native.repack("Q8_0", w.raw, (20, 64))), "Q8_0", 20)
    with pytest.raises(ValueError, match=message):
        native.fused_linear(numbers(2, 64), [packed], eps=EPS, **extra)
    with pytest.raises(ValueError, match="need a single weight"):
        native.fused_linear(numbers(2, 64), [packed, packed], residual=numbers(2, 20))
    with pytest.raises(ValueError, match="activation_bits must be 8 or 16, got 4"):
        native.fused_linear(numbers(2, 64), [packed], activation_bits=4)
