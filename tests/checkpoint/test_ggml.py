from concurrent.futures import ThreadPoolExecutor

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gemwright.checkpoint.files import ggml
from gemwright.errors import CheckpointError

ENCODABLE = [name for name, e in ggml.ENCODINGS.items() if e.encode]
UNKNOWN_TO_GGUF = ("Q2_0",)
"""Newer than gguf 0.19."""
WITHOUT_REFERENCE = ("Q1_0", "Q2_0")
"""gguf 0.19 does not decode these."""
DECODED_BY_GGUF = [name for name in ggml.ENCODINGS if name not in WITHOUT_REFERENCE]
MORE_THAN_A_CHUNK = ggml.CACHE_CHUNK + 5 * 256


def random_blocks(encoding: str, count: int) -> np.ndarray:
    """Return random bytes: the scales include every kind of float16, also infinities and NaN."""
    return np.random.default_rng(count).integers(0, 256, ggml.ENCODINGS[encoding].nbytes(count), np.uint8)


def reference_values(encoding: str, raw: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        rows = quants.dequantize(raw.reshape(1, -1), gguf.GGMLQuantizationType[encoding])
    return rows.reshape(-1).astype(np.float32)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Assert equality bit by bit, signed zeros included; any NaN equals any other."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    bits = f"u{expected.itemsize}"
    np.testing.assert_array_equal(actual.view(bits)[~nan], expected.view(bits)[~nan])


def test_table_agrees_with_gguf() -> None:
    for name, e in ggml.ENCODINGS.items():
        if name in UNKNOWN_TO_GGUF:
            continue
        kind = gguf.GGMLQuantizationType(e.type_id)
        assert kind.name == name
        assert gguf.GGML_QUANT_SIZES[kind] == (e.elements, e.block.itemsize)
    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    supported = {e.type_id: name for name, e in ggml.ENCODINGS.items() if name not in UNKNOWN_TO_GGUF}
    assert supported | ggml.UNSUPPORTED == names


@pytest.mark.parametrize("encoding", DECODED_BY_GGUF)
@pytest.mark.parametrize("count", [256, MORE_THAN_A_CHUNK])
def test_decode_equals_gguf(encoding: str, count: int) -> None:
    raw = random_blocks(encoding, count)
    out = np.full(count, 7, np.float32)
    ggml.decode(encoding, raw, out)
    assert_same_bits(out, reference_values(encoding, raw))


@pytest.mark.parametrize("encoding", DECODED_BY_GGUF)
def test_decode_to_bfloat16_rounds_the_float32_values(encoding: str) -> None:
    raw = random_blocks(encoding, MORE_THAN_A_CHUNK)
    out = np.zeros(MORE_THAN_A_CHUNK, ml_dtypes.bfloat16)
    ggml.decode(encoding, raw, out)
    with np.errstate(all="ignore"):
        assert_same_bits(out, reference_values(encoding, raw).astype(ml_dtypes.bfloat16))


def test_decode_in_threads_and_shapes() -> None:
    raw = random_blocks("Q4_K", 64 * 2048).reshape(64, -1)
    out = np.zeros((64, 2, 1024), np.float32)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: ggml.decode("Q4_K", raw[i : i + 4], out[i : i + 4]), range(0, 64, 4)))
    assert_same_bits(out.reshape(-1), reference_values("Q4_K", raw.reshape(-1)))


def with_special_rows(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(-1, 32)
    rows[0] = 0
    rows[1] = np.where(np.arange(32) % 2, -0.0, 0.0)
    rows[2] = np.linspace(-127, 127, 32) // 1 + 0.5  # halves: rounding away from zero shows
    rows[3, 0] = 127
    rows[4] = np.where(np.arange(32) % 2, -3.0, 3.0)  # the first of equal extremes decides the sign
    rows[5] = np.where(np.arange(32) % 2, 3.0, -3.0)
    rows[6, 5] = 4e5
    rows[7] = np.arange(32) % 16 - 7.5  # with an extreme of -8, halves for 4 bits
    rows[7, 0] = -8
    return rows


@pytest.mark.parametrize("encoding", ENCODABLE)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e3])
def test_encode_equals_gguf(encoding: str, scale: float) -> None:
    values = np.random.default_rng(0).normal(0, scale, MORE_THAN_A_CHUNK).astype(np.float32)
    if encoding != "F16":
        values = with_special_rows(values)
    expected = quants.quantize(values.reshape(1, -1), gguf.GGMLQuantizationType[encoding])
    np.testing.assert_array_equal(ggml.encode(encoding, values), expected.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_0"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_encode_equals_gguf_on_any_values(encoding: str, data: st.DataObject) -> None:
    # Below 1e-30 the reference divides by a scale that is zero or overflows.
    number = st.floats(-1e5, 1e5, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
    values = data.draw(hnp.arrays(np.float32, (2, 64), elements=number))
    expected = quants.quantize(values, gguf.GGMLQuantizationType[encoding])
    np.testing.assert_array_equal(ggml.encode(encoding, values), expected.reshape(-1))


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0"])
def test_decoded_values_encode_to_the_same_bytes(encoding: str) -> None:
    values = np.random.default_rng(1).normal(size=(8, 256)).astype(ml_dtypes.bfloat16)
    raw = ggml.encode(encoding, values)
    decoded = np.zeros(values.shape, np.float32)
    ggml.decode(encoding, raw, decoded)
    np.testing.assert_array_equal(ggml.encode(encoding, decoded), raw)


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_0"])
def test_values_too_small_for_a_scale_encode_as_zeros(encoding: str) -> None:
    tiny = np.linspace(0, 1e-40, 32).astype(np.float32)
    np.testing.assert_array_equal(ggml.encode(encoding, tiny), ggml.encode(encoding, np.zeros(32)))


@pytest.mark.parametrize("encoding", ENCODABLE)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_encode_refuses_values_that_are_not_finite(encoding: str, bad: float) -> None:
    values = np.ones(64, np.float32)
    values[40] = bad
    with pytest.raises(CheckpointError, match=f"not finite, or too large for {encoding}"):
        ggml.encode(encoding, values)


@pytest.mark.parametrize(("encoding", "limit"), [("F16", 65504), ("Q8_0", 127 * 65504), ("Q4_0", 8 * 65504)])
def test_encode_refuses_overflow(encoding: str, limit: float) -> None:
    values = np.zeros(32, np.float32)
    values[3] = limit
    ggml.encode(encoding, values)
    values[3] = limit * 1.01
    with pytest.raises(CheckpointError, match="too large"):
        ggml.encode(encoding, values)
