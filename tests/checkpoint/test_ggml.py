import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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

EXACT = ("F32", "F16", "BF16", "Q4_0", "Q8_0")
"""Encodings whose bytes are those of gguf, without an importance matrix."""
ENCODABLE = [name for name, e in ggml.ENCODINGS.items() if e.encode]
UNKNOWN_TO_GGUF = ("Q2_0",)
"""Newer than gguf 0.19."""
WITHOUT_REFERENCE = ("Q1_0", "Q2_0")
"""gguf 0.19 does not decode these."""
DECODED_BY_GGUF = [name for name in ggml.ENCODINGS if name not in WITHOUT_REFERENCE]
SEARCHED = [name for name in ENCODABLE if name not in EXACT]
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


@pytest.mark.parametrize(("encoding", "bits", "lowest"), [("Q1_0", 1, -1), ("Q2_0", 2, -1)])
def test_low_bit_encodings(encoding: str, bits: int, lowest: int) -> None:
    """A value is the scale times the lowest level plus its field, low bits first; of one bit, twice the field."""
    raw = random_blocks(encoding, 4096)
    e = ggml.ENCODINGS[encoding]
    expected: list[float] = []
    with np.errstate(all="ignore"):
        for block in raw.reshape(-1, e.block.itemsize):
            fields = int.from_bytes(block[2:].tobytes(), "little")
            d = np.float32(block[:2].view(np.float16)[0])
            step = 2 if bits == 1 else 1
            levels = [lowest + step * (fields >> bits * i & (1 << bits) - 1) for i in range(e.elements)]
            expected += [d * np.float32(level) for level in levels]
    assert_same_bits(decoded(encoding, raw, (4096,)), np.array(expected, np.float32))


@pytest.mark.parametrize("encoding", ggml.ENCODINGS)
@pytest.mark.parametrize("byte", [0, 1, 127, 128, 255])
def test_extreme_bytes_decode(encoding: str, byte: int) -> None:
    raw = np.full(ggml.ENCODINGS[encoding].nbytes(512), byte, np.uint8)
    values = decoded(encoding, raw, (2, 256))
    if encoding in DECODED_BY_GGUF:
        assert_same_bits(values.reshape(-1), reference_values(encoding, raw))


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


@pytest.mark.parametrize("encoding", EXACT)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e3])
def test_encode_equals_gguf(encoding: str, scale: float) -> None:
    values = np.random.default_rng(0).normal(0, scale, MORE_THAN_A_CHUNK).astype(np.float32)
    if encoding != "F16":
        values = with_special_rows(values)
    expected = quants.quantize(values.reshape(1, -1), gguf.GGMLQuantizationType[encoding])
    np.testing.assert_array_equal(ggml.encode(encoding, values), expected.reshape(-1).view(np.uint8))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_encode_equals_gguf_on_any_values(data: st.DataObject) -> None:
    # Below 1e-30 the reference divides by a scale that is zero or overflows.
    number = st.floats(-1e5, 1e5, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
    values = data.draw(hnp.arrays(np.float32, (2, 64), elements=number))
    expected = quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(ggml.encode("Q8_0", values), expected.reshape(-1))


def decoded(encoding: str, raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, np.float32)
    ggml.decode(encoding, raw, out)
    return out


def relative_error(values: np.ndarray, rounded: np.ndarray, weights: Any = 1.0) -> float:
    """Return the root of the weighted mean square of the error, relative to that of the values."""
    values = values.astype(np.float64)
    return float(np.sqrt((weights * np.square(rounded - values)).sum() / (weights * np.square(values)).sum()))


def heavy_tailed() -> np.ndarray:
    return (np.random.default_rng(0).standard_t(4, (32, 1024)) * 0.02).astype(np.float32)


@pytest.mark.parametrize("encoding", ["Q4_1", "Q5_0", "Q5_1"])
def test_a_searched_scale_is_better_than_plain_rounding(encoding: str) -> None:
    values = heavy_tailed()
    plain = quants.dequantize(quants.quantize(values, kind := gguf.GGMLQuantizationType[encoding]), kind)
    ours = decoded(encoding, ggml.encode(encoding, values), values.shape)
    assert relative_error(values, ours) < 0.97 * relative_error(values, plain)


LLAMA_CPP_ERROR = {
    "Q4_0": 0.1152,
    "Q4_1": 0.09352,
    "Q5_0": 0.05779,
    "Q5_1": 0.04539,
    "Q2_K": 0.3447,
    "Q3_K": 0.1846,
    "Q4_K": 0.08649,
    "Q5_K": 0.04373,
    "Q6_K": 0.02304,
    "IQ4_NL": 0.09324,
    "IQ4_XS": 0.09420,
}
"""Errors of `ggml_quantize_chunk` (libggml 0.25.3) on `heavy_tailed`, rounded up in the fourth digit."""


@pytest.mark.parametrize("encoding", LLAMA_CPP_ERROR)
def test_the_error_is_at_most_that_of_llama_cpp(encoding: str) -> None:
    values = heavy_tailed()
    raw = ggml.encode(encoding, values)
    ours = decoded(encoding, raw, values.shape)
    np.testing.assert_array_equal(reference_values(encoding, raw), ours.reshape(-1))
    assert relative_error(values, ours) <= LLAMA_CPP_ERROR[encoding]


@pytest.mark.peer
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("encoding", LLAMA_CPP_ERROR)
def test_the_error_is_at_most_that_of_the_installed_llama_cpp(encoding: str, weighted: bool) -> None:
    """With an importance matrix 0.5% more is allowed: the two searches visit other candidates."""
    package = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(Path(package.__file__).parent / "lib" / "libggml-base.so"))
    values, random = heavy_tailed(), np.random.default_rng(1)
    importance = random.uniform(0.1, 4, values.shape[1]).astype(np.float32) if weighted else None
    ours = ggml.encode(encoding, values, importance)
    theirs = np.zeros_like(ours)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (values, theirs)]
    wanted = None if importance is None else ctypes.c_void_p(importance.ctypes.data)
    sizes = [ctypes.c_int64(size) for size in (0, *values.shape)]
    library.ggml_quantize_chunk(ggml.ENCODINGS[encoding].type_id, *pointers, *sizes, wanted)
    errors = [
        relative_error(values, decoded(encoding, raw, values.shape), 1.0 if importance is None else importance)
        for raw in (ours, theirs)
    ]
    assert errors[0] <= errors[1] * (1.005 if weighted else 1)


@pytest.mark.parametrize("encoding", SEARCHED)
def test_important_columns_get_smaller_errors(encoding: str) -> None:
    values = heavy_tailed()
    importance = np.where(np.arange(values.shape[1]) % 4, 0.01, 100).astype(np.float32)
    plain, ours = (
        decoded(encoding, ggml.encode(encoding, values, weights), values.shape) for weights in (None, importance)
    )
    assert relative_error(values, ours, importance) < 0.97 * relative_error(values, plain, importance)


@pytest.mark.parametrize("encoding", SEARCHED)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_finite_values_encode_to_finite_ones(encoding: str, data: st.DataObject) -> None:
    number = st.floats(-1e5, 1e5, width=32).map(lambda x: x if abs(x) > 1e-15 else 0.0)
    values = np.tile(data.draw(hnp.arrays(np.float32, 32, elements=number)), (1, 8))
    raw = ggml.encode(encoding, values)
    ours = decoded(encoding, raw, values.shape)
    np.testing.assert_array_equal(reference_values(encoding, raw), ours.reshape(-1))
    assert relative_error(values, ours) <= 1 if values.any() else not ours.any()


@pytest.mark.parametrize("encoding", SEARCHED)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_a_constant_is_kept(encoding: str, value: float) -> None:
    values = np.full((1, 256), value, np.float32)
    np.testing.assert_allclose(decoded(encoding, ggml.encode(encoding, values), values.shape), values, rtol=2e-3)


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0"])
def test_decoded_values_encode_to_the_same_bytes(encoding: str) -> None:
    values = np.random.default_rng(1).normal(size=(8, 256)).astype(ml_dtypes.bfloat16)
    raw = ggml.encode(encoding, values)
    decoded = np.zeros(values.shape, np.float32)
    ggml.decode(encoding, raw, decoded)
    np.testing.assert_array_equal(ggml.encode(encoding, decoded), raw)


@pytest.mark.parametrize("encoding", ["Q8_0", *SEARCHED])
def test_values_too_small_for_a_scale_encode_as_zeros(encoding: str) -> None:
    tiny = np.linspace(0, 1e-40, 256).astype(np.float32)
    assert not decoded(encoding, ggml.encode(encoding, tiny), tiny.shape).any()


@pytest.mark.parametrize("encoding", ENCODABLE)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_encode_refuses_values_that_are_not_finite(encoding: str, bad: float) -> None:
    values = np.ones(512, np.float32)
    values[300] = bad
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
