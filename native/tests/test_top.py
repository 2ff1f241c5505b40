"""The largest products against a sort of all products, bit for bit, and the split weight against Q8_0."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

import gemwright_native as native
from weights import random_weight

RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def sorted_products(x: np.ndarray, packed: np.ndarray, encoding: str, out: int, limit: int, count: int) -> tuple:
    """Sort all products, computed for few rows at a time because more rows may be multiplied in bfloat16."""
    weight = jnp.asarray(packed)
    few = [
        native.matmul(jnp.asarray(x[i : i + 50]), weight, encoding, out, activation_bits=16)
        for i in range(0, len(x), 50)
    ]
    products = np.concatenate(few)[:, :limit]
    ids = np.argsort(-products, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(products, ids, axis=1), ids


@pytest.mark.parametrize("encoding", ["Q4_0", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "BF16", native.SPLIT])
@pytest.mark.parametrize(("out", "limit", "count"), [(37, 36, 1), (2500, 2500, 64), (9000, 8999, 3), (40, 40, 40)])
def test_largest_products(isa: str, encoding: str, out: int, limit: int, count: int) -> None:
    w = random_weight("Q8_0" if encoding == native.SPLIT else encoding, (out, 256))
    packed = native.repack(encoding, w.raw, (out, 256))
    x = numbers(18, 256)  # more rows than are processed at a time
    values, ids = native.top(jnp.asarray(x), jnp.asarray(packed), encoding, out, limit, count)
    expected, places = sorted_products(x, packed, encoding, out, limit, count)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(ids, places)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-2])
def test_nearly_equal_rows(isa: str, spread: float) -> None:
    """The products differ in the last bits of the weights, which the first pass does not read."""
    shape = (3000, 96)
    blocks = np.zeros((shape[0], 3), [("d", "<f2"), ("q", "i1", 32)])
    blocks["d"] = 0.01
    blocks["q"] = RANDOM.integers(-128, 128, 96).reshape(3, 32) + RANDOM.integers(-2, 3, (shape[0], 3, 32)) * (
        spread > 0
    )
    raw = blocks.reshape(-1).view(np.uint8)
    x = numbers(2, 96) * max(spread, 1.0)
    for count in (1, 64):
        packed = native.repack(native.SPLIT, raw, shape)
        values, ids = native.top(jnp.asarray(x), jnp.asarray(packed), native.SPLIT, 3000, 3000, count)
        expected, places = sorted_products(x, packed, native.SPLIT, 3000, 3000, count)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(ids, places)


@pytest.mark.parametrize("width", [32, 64, 96, 128, 160, 640, 1152])
def test_split_weight_equals_q8_0(isa: str, width: int) -> None:
    shape = (37, width)
    w = random_weight("Q8_0", shape)
    split, whole = (jnp.asarray(native.repack(name, w.raw, shape)) for name in (native.SPLIT, "Q8_0"))
    ids = jnp.asarray([*range(37), -1, 37, 2**31 - 1, 5], jnp.int32)
    rows = np.asarray(native.rows(split, ids, native.SPLIT, width))
    np.testing.assert_array_equal(rows, native.rows(whole, ids, "Q8_0", width))
    assert np.isnan(rows[37:40]).all()
    for count in (1, 3, 4, 9):
        x = jnp.asarray(numbers(count, width))
        expected = np.asarray(native.matmul(x, whole, "Q8_0", 37, activation_bits=16))
        slack = 2e-6 * (np.abs(x) @ w.magnitudes.T)
        assert (np.abs(native.matmul(x, split, native.SPLIT, 37) - expected) <= slack).all()


def test_bound_holds_for_the_worst_activations(isa: str) -> None:
    """With activations parallel to the remainders, the Cauchy-Schwarz inequality is an equality."""
    q = RANDOM.integers(-128, 128, (400, 64))
    left = q - 8 * np.minimum((q + 4) >> 3, 15)
    blocks = np.zeros((400, 2), [("d", "<f2"), ("q", "i1", 32)])
    blocks["d"], blocks["q"] = 0.02, q.reshape(400, 2, 32)
    packed = native.repack(native.SPLIT, blocks.reshape(-1).view(np.uint8), (400, 64))
    x = left.astype(np.float32) * 3
    values, ids = native.top(jnp.asarray(x), jnp.asarray(packed), native.SPLIT, 400, 400, 5)
    expected, places = sorted_products(x, packed, native.SPLIT, 400, 400, 5)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(ids, places)


@pytest.mark.parametrize("encoding", ["Q8_0", native.SPLIT])
def test_nan_stays_in_its_row(isa: str, encoding: str) -> None:
    w = random_weight("Q8_0", (50, 64))
    packed = jnp.asarray(native.repack(encoding, w.raw, (50, 64)))
    x = numbers(3, 64)
    clean = native.top(jnp.asarray(x), packed, encoding, 50, 50, 4)
    x[1, 3] = np.nan
    values, ids = native.top(jnp.asarray(x), packed, encoding, 50, 50, 4)
    assert np.isnan(values[1]).all()
    assert ((np.asarray(ids) >= 0) & (np.asarray(ids) < 50)).all()
    for ours, expected in zip((values, ids), clean, strict=True):
        np.testing.assert_array_equal(ours[::2], expected[::2])


def test_scales_that_cannot_be_split() -> None:
    blocks = np.zeros((16, 1), [("d", "<f2"), ("q", "i1", 32)])
    blocks["d"][:, 0] = [*[1.0, 6e-8, 1e-5, 0.0, -3e-5, 4000.0] * 2, 1.0, 1.0, 1.0, 1.0]
    blocks["q"] = RANDOM.integers(-128, 128, (16, 1, 32))
    raw = blocks.reshape(-1).view(np.uint8)
    ids = jnp.arange(16, dtype=jnp.int32)
    split, whole = (jnp.asarray(native.repack(name, raw, (16, 32))) for name in (native.SPLIT, "Q8_0"))
    np.testing.assert_array_equal(native.rows(split, ids, native.SPLIT, 32), native.rows(whole, ids, "Q8_0", 32))
    for scale in (8192.0, -65504.0, np.inf, np.nan):
        blocks["d"][3] = scale
        with pytest.raises(OverflowError, match="too large"):
            native.repack(native.SPLIT, raw, (16, 32))


x, packed = jnp.zeros((2, 64)), jnp.zeros(1088, jnp.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native.top(x[0], packed, "Q8_0", 16, 16, 1), "x must be float32"),
        (lambda: native.top(x, packed, "Q8_0", 17, 16, 1), r"packed must be uint8 \[2176\]"),
        (lambda: native.top(x, packed, "Q8_0", 16, 17, 1), "limit <= out_features, got 1, 17 and 16"),
        (lambda: native.top(x, packed, "Q8_0", 16, 8, 9), "got 9, 8 and 16"),
        (lambda: native.top(x, packed, "Q8_0", 16, 8, 0), "got 0, 8 and 16"),
        (lambda: native.top(x, packed, native.SPLIT, 16, 8, 1), "packed must be uint8"),
        (lambda: native.matmul(x, jnp.zeros(8, jnp.uint8), native.SPLIT, 16), "packed must be uint8"),
    ],
)
def test_wrong_arguments_raise(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
