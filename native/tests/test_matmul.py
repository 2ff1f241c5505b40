"""Products and look-ups in every encoding and instruction set against numpy.

Tolerances are relative to the accumulated magnitude, sum |x| |w|: 1e-6 is some eight units in the last place of
float32, enough for sums of up to 2048 terms in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemwright_native as native
from weights import RandomWeight, block, quantized, random_weight

TOLERANCE = 1e-6
INTEGER_ENCODINGS = [e for e in native.ENCODINGS if block(e) > 1]


def activations(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)


def product(w: RandomWeight, x: np.ndarray, exact: bool) -> np.ndarray:
    packed = native.repack(w.encoding, w.raw, w.values.shape)
    return np.asarray(native.matmul(jnp.asarray(x), jnp.asarray(packed), w.encoding, len(w.values), exact))


def error(y: np.ndarray, w: RandomWeight, x: np.ndarray) -> float:
    """Return the largest error of `x @ w.T`, relative to the accumulated magnitude."""
    x = x.astype(np.float64)
    return float((np.abs(y - x @ w.values.T) / (np.abs(x) @ w.magnitudes.T)).max())


@pytest.mark.parametrize("encoding", native.ENCODINGS)
def test_lookup_equals_the_decoder(isa: str, encoding: str) -> None:
    w = random_weight(encoding, (37, 3 * block(encoding)))
    packed = jnp.asarray(native.repack(encoding, w.raw, w.values.shape))
    ids = np.array([*range(37), 5, 5, 4, 36, 0, 21], np.int32)
    y = jax.jit(lambda p, i: native.rows(p, i, encoding, w.values.shape[1]))(packed, jnp.asarray(ids))
    np.testing.assert_array_equal(y, w.values[ids])


@pytest.mark.parametrize("encoding", native.ENCODINGS)
@pytest.mark.parametrize(("out", "blocks", "rows"), [(37, 3, 5), (16, 1, 1), (3, 8, 17), (1, 2, 2)])
def test_exact_product(isa: str, encoding: str, out: int, blocks: int, rows: int) -> None:
    w = random_weight(encoding, (out, blocks * block(encoding)))
    x = activations(rows, w.values.shape[1])
    assert error(product(w, x, exact=True), w, x) < TOLERANCE


@pytest.mark.parametrize("encoding", INTEGER_ENCODINGS)
@pytest.mark.parametrize(("out", "blocks", "rows"), [(37, 3, 5), (16, 1, 1), (3, 8, 17), (1, 2, 2)])
def test_product_with_quantized_activations(isa: str, encoding: str, out: int, blocks: int, rows: int) -> None:
    w = random_weight(encoding, (out, blocks * block(encoding)))
    x = activations(rows, w.values.shape[1])
    y = product(w, x, exact=False)
    rounded, steps = quantized(x)
    assert error(y, w, rounded) < TOLERANCE
    # The error of an activation is half a step at most.
    bound = (steps / 2) @ np.abs(w.values.astype(np.float64)).T
    slack = TOLERANCE * (np.abs(x) @ w.magnitudes.T)
    assert (np.abs(y - x.astype(np.float64) @ w.values.T) <= bound + slack).all()


@pytest.mark.parametrize("encoding", INTEGER_ENCODINGS)
@pytest.mark.parametrize("activation_bits", [8, 16])
def test_products_do_not_depend_on_the_number_of_rows(isa: str, encoding: str, activation_bits: int) -> None:
    w = random_weight(encoding, (37, 3 * block(encoding)))
    x = jnp.asarray(activations(301, w.values.shape[1]))[: 64 if isa == "amx" else 301]
    packed = jnp.asarray(native.repack(encoding, w.raw, w.values.shape))
    together = native.matmul(x, packed, encoding, 37, activation_bits=activation_bits)
    for rows in (slice(0, 1), slice(1, 3), slice(2, 7), slice(len(x) - 13, len(x))):
        some = native.matmul(x[rows], packed, encoding, 37, activation_bits=activation_bits)
        np.testing.assert_array_equal(some, together[rows])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", range(1, 18))
def test_every_number_of_rows(isa: str, rows: int, exact: bool) -> None:
    w = random_weight("Q4_K", (18, 512))
    x = activations(rows, 512)
    y = product(w, x, exact)
    alone = np.concatenate([product(w, x[i : i + 1], exact) for i in range(rows)])
    np.testing.assert_allclose(y, alone, rtol=0, atol=TOLERANCE * float((np.abs(x) @ w.magnitudes.T).max()))
    assert error(y, w, x if exact else quantized(x)[0]) < TOLERANCE


def bfloat16(values: np.ndarray) -> np.ndarray:
    return values.astype(jnp.bfloat16).astype(np.float64)


@pytest.mark.parametrize("encoding", INTEGER_ENCODINGS)
@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize(
    ("out", "width", "rows"),
    [(37, 768, 65), (16, 256, 96), (3, 1280, 70), (1, 2304, 81), (100, 1024, 79), (32, 256, 1100)],
)
def test_many_rows_in_bfloat16(isa: str, encoding: str, activation_bits: int, out: int, width: int, rows: int) -> None:
    """With AMX and more than 64 rows, both factors are rounded to bfloat16, by 2^-9 of themselves at most."""
    w = random_weight(encoding, (out, width))
    x = activations(rows, width)
    packed = jnp.asarray(native.repack(encoding, w.raw, w.values.shape))
    y = np.asarray(native.matmul(jnp.asarray(x), packed, encoding, out, activation_bits=activation_bits))
    accumulated = np.abs(x).astype(np.float64) @ w.magnitudes.T
    if isa == "amx":
        assert (np.abs(y - x.astype(np.float64) @ w.values.T) <= 1.01 * 2**-8 * accumulated).all()
        assert (np.abs(y - bfloat16(x) @ bfloat16(w.values).T) <= TOLERANCE * accumulated).all()
    elif activation_bits == 8:
        assert error(y, w, quantized(x)[0]) < TOLERANCE


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_few_rows_are_the_same_with_amx(activation_bits: int) -> None:
    """Speculative decoding relies on equal bits for decoding and verification: eight tokens of eight sequences."""
    if "amx" not in native.isas():
        pytest.skip("this machine has no AMX")
    w, x, before = random_weight("Q5_0", (50, 96)), jnp.asarray(activations(64, 96)), native.isa()
    packed = jnp.asarray(native.repack("Q5_0", w.raw, w.values.shape))
    results = []
    for name in ("amx", "avx512"):
        native.select_isa(name)
        results.append(np.asarray(native.matmul(x, packed, "Q5_0", 50, activation_bits=activation_bits)))
    native.select_isa(before)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("encoding", "byte", "value"), [("Q8_0", 0x80, -128), ("IQ4_NL", 0x00, -127), ("Q5_0", 0xFF, 15), ("Q4_0", 0xFF, 7)]
)
def test_extreme_weights_and_activations_do_not_saturate(isa: str, encoding: str, byte: int, value: int) -> None:
    """Use the largest integer products, at which 16-bit sums of products are largest."""
    e = random_weight(encoding, (16, 64))
    raw = e.raw.reshape(32, -1).copy()
    raw[:, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    raw[:, 2:] = byte
    for sign in (1, -1):
        x = np.full((9, 64), sign, np.float32)
        y = product(RandomWeight(encoding, raw.reshape(-1), e.values, e.values), x, False)
        np.testing.assert_allclose(y, np.full((9, 16), value * 64 * sign), rtol=TOLERANCE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [10, 70])
def test_non_finite_values_stay_in_their_row(isa: str, bad: float, rows: int) -> None:
    w = random_weight("Q5_0", (20, 64))
    x = activations(rows, 64)
    good = product(w, x, exact=False)
    x[3, 40] = bad
    y = product(w, x, exact=False)
    assert not np.isfinite(y[3]).any()
    assert np.isnan(y[3]).all() or (isa == "amx" and rows > 64)
    np.testing.assert_array_equal(np.delete(y, 3, 0), np.delete(good, 3, 0))


def test_zero_tiny_and_huge_activations(isa: str) -> None:
    w = random_weight("Q8_0", (20, 64))
    x = np.zeros((3, 64), np.float32)
    x[1] = 1e-40  # below the smallest normal number: rounds to zero
    x[2] = 1e30
    y = product(w, x, exact=False)
    assert (y[:2] == 0).all()
    assert error(y[2:], w, x[2:]) < TOLERANCE


@pytest.mark.parametrize("encoding", native.ENCODINGS)
def test_ids_outside_the_table_give_nan(isa: str, encoding: str) -> None:
    w = random_weight(encoding, (17, block(encoding)))
    packed = jnp.asarray(native.repack(encoding, w.raw, w.values.shape))
    ids = jnp.array([-1, 16, 17, 31, 32, 2**31 - 1, -(2**31)], jnp.int32)
    y = np.asarray(native.rows(packed, ids, encoding, block(encoding)))
    np.testing.assert_array_equal(y[1], w.values[16])
    assert np.isnan(np.delete(y, 1, 0)).all()


def test_empty_arrays(isa: str) -> None:
    w = random_weight("Q4_0", (5, 64))
    packed = jnp.asarray(native.repack("Q4_0", w.raw, (5, 64)))
    assert native.matmul(jnp.zeros((0, 64)), packed, "Q4_0", 5).shape == (0, 5)
    for rows in (3, 65):
        assert native.matmul(jnp.zeros((rows, 64)), jnp.zeros(0, jnp.uint8), "Q4_0", 0).shape == (rows, 0)
        np.testing.assert_array_equal(
            native.matmul(jnp.zeros((rows, 0)), jnp.zeros(0, jnp.uint8), "Q4_0", 5), np.zeros((rows, 5))
        )
    assert native.rows(packed, jnp.zeros(0, jnp.int32), "Q4_0", 64).shape == (0, 64)


def test_unaligned_bytes_repack_alike() -> None:
    w = random_weight("Q6_K", (18, 512))
    shifted = np.empty(w.raw.size + 1, np.uint8)[1:]
    shifted[:] = w.raw
    np.testing.assert_array_equal(native.repack("Q6_K", shifted, (18, 512)), native.repack("Q6_K", w.raw, (18, 512)))


@pytest.mark.parametrize("encoding", INTEGER_ENCODINGS)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_sixteen_bit_activations(isa: str, encoding: str, rows: int) -> None:
    """The error of a 16-bit activation is half of 1 / (127 * 254) of the largest of 32 at most."""
    w = random_weight(encoding, (37, 2 * block(encoding)))
    x = activations(rows, w.values.shape[1])
    packed = jnp.asarray(native.repack(encoding, w.raw, w.values.shape))
    y = native.matmul(jnp.asarray(x), packed, encoding, 37, activation_bits=16)
    largest = np.abs(x).reshape(rows, -1, 32).max(-1, keepdims=True)
    steps = np.broadcast_to(largest / (127 * 254), (rows, largest.shape[1], 32)).reshape(x.shape)
    bound = (steps / 2) @ np.abs(w.values.astype(np.float64)).T
    slack = TOLERANCE * (np.abs(x) @ w.magnitudes.T)
    assert (np.abs(y - x.astype(np.float64) @ w.values.T) <= 1.001 * bound + slack).all()
