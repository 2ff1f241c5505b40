"""Weights in their stored format against the same weights as float32 arrays."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import gemwright
from gemwright import weights
from gemwright.checkpoint.arena import aligned
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.files import ggml
from gemwright.kernels import native
from gemwright.kernels.native import native_enabled
from gemwright.weights import PackedTensor
from tests.helpers import english_text, run_in_new_process
from tests.tiny.gguf import write_tiny_gguf

if not native_enabled():
    pytest.skip("the C++ kernels are not installed", allow_module_level=True)


def q8_0(shape: tuple[int, ...], rows: int) -> tuple[PackedTensor, jax.Array]:
    """Return a random weight in Q8_0 and its dequantized array."""
    values = np.random.default_rng(0).normal(size=(rows, np.prod(shape) // rows)).astype(np.float32)
    raw = ggml.encode("Q8_0", values)
    decoded = np.empty_like(values)
    ggml.decode("Q8_0", raw, decoded)
    made = native.repack("Q8_0", raw, values.shape, allocate=aligned, on_rows_read=lambda: None)
    return PackedTensor.to_device(made, shape, activation_bits=8), jnp.asarray(decoded.reshape(shape))


@pytest.mark.parametrize(("shape", "rows", "inputs"), [((70, 64), 70, 1), ((3, 16, 96), 48, 1), ((33, 2, 32), 33, 2)])
def test_a_packed_weight_multiplies_as_the_array_that_it_stands_for(shape: tuple[int, ...], rows: int, inputs: int):
    weight, array = q8_0(shape, rows)
    x = jax.random.normal(jax.random.key(0), (2, 5, *shape[len(shape) - inputs :]))
    y = jax.jit(lambda w: weights.matmul(x, w, inputs=inputs))(weight)
    # Activations are rounded to a half of 1/127 of the largest in their block: at most that much of sum |x| |w|.
    bound = weights.matmul(jnp.full_like(x, jnp.max(jnp.abs(x)) / 254), jnp.abs(array), inputs=inputs)
    assert y.shape == (2, 5, *shape[: len(shape) - inputs])
    assert jnp.all(jnp.abs(y - weights.matmul(x, array, inputs=inputs)) <= bound + 1e-4)


def test_rows_are_the_very_values():
    weight, array = q8_0((70, 64), 70)
    ids = jnp.asarray([[0, 69], [5, 70]])
    found = weights.rows(weight, ids)
    assert jnp.array_equal(found[0], array[jnp.asarray([0, 69])])
    assert jnp.array_equal(found[1, 0], array[5])
    assert jnp.all(jnp.isnan(found[1, 1]))


def test_a_packed_weight_stays_where_it_was_packed():
    values = np.random.default_rng(0).normal(size=(70, 64)).astype(np.float32)
    taken: list[NDArray[np.uint8]] = []

    def take(nbytes: int) -> NDArray[np.uint8]:
        taken.append(aligned(nbytes))
        return taken[-1]

    made = native.repack("Q8_0", ggml.encode("Q8_0", values), (70, 64), allocate=take, on_rows_read=lambda: None)
    weight = PackedTensor.to_device(made, (70, 64), activation_bits=8)
    assert [weight.packed.unsafe_buffer_pointer()] == [memory.ctypes.data for memory in taken]


def test_a_weight_packed_in_parts_is_the_weight_packed_whole(monkeypatch: pytest.MonkeyPatch):
    whole, _ = q8_0((70, 64), 70)
    monkeypatch.setattr(native, "CHUNK", 1)
    assert jnp.array_equal(q8_0((70, 64), 70)[0].packed, whole.packed)


def test_a_frozen_packed_weight_passes_gradients_on():
    weight, array = q8_0((70, 64), 70)
    x = jax.random.normal(jax.random.key(1), (4, 64))
    gradient = jax.grad(lambda x, w: jnp.sum(weights.matmul(x, w) * jnp.arange(70.0)))
    np.testing.assert_allclose(gradient(x, weight), gradient(x, array), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_plain_weights_at_their_own_bits_give_the_float32_model(tmp_path: Path, dtype: str):
    convert(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "other.gguf", "gguf", dtype)
    own, plain = gemwright.load(tmp_path / "other.gguf"), gemwright.load(tmp_path / "other.gguf", dtype="float32")
    assert isinstance(own.engine.params.layers[0].mlp.gate, PackedTensor)
    assert (own.engine.state_dtype, plain.engine.state_dtype) == (jnp.bfloat16, jnp.float32)
    own = replace(own, engine=replace(own.engine, state_dtype=jnp.float32))  # the weights alone
    text = "the and then " * 5
    np.testing.assert_allclose(own.score(text).logprobs, plain.score(text).logprobs, atol=1e-4)


@pytest.mark.slow
def test_the_demo_keeps_its_bits_and_its_quality(demo_gguf: Path):
    """Rounding activations to 8 bits moves the mean log-likelihood by less than 0.3%, and few first choices."""
    ours, theirs = (run_in_new_process(score_demo, demo_gguf, dtype) for dtype in ("stored", "float32"))
    assert abs(ours / theirs - 1) < 3e-3


def score_demo(path: Path, dtype: str) -> float:
    """Return the mean log-likelihood of an English text."""
    model = gemwright.load(path, dtype=dtype)
    embed = model.engine.params.embed
    assert embed.dtype == jnp.float32
    assert isinstance(embed, PackedTensor) == (dtype == "stored")
    ids = model.encode(english_text())[:513]  # one chunk of 512
    return float(np.mean(model.engine.score([ids])[0]))
