"""Panels against the C++ kernels' own repacking and against GGUF's decoders, in numpy and in XLA."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from gemwright import weights
from gemwright.checkpoint.files import ggml
from gemwright.kernels import panels
from gemwright.kernels.native import native_enabled
from gemwright.weights import PanelTensor

pytestmark = pytest.mark.usefixtures("quick_compilation")
encodings = pytest.mark.parametrize("encoding", panels.BITS)


def made(encoding: str, rows: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Return a random weight: its panels, its bytes in a GGUF, and its decoded values."""
    random = np.random.default_rng(0)
    raw = ggml.encode(encoding, random.normal(size=(rows, width)).astype(np.float32))
    blocks = raw.view(ggml.ENCODINGS[encoding].block).reshape(rows, -1)
    numbers = blocks["qs"]
    if encoding == "Q4_0":
        numbers = np.concatenate([numbers & 15, numbers >> 4], axis=-1).view(np.int8) - np.int8(8)
    values = np.empty((rows, width), np.float32)
    ggml.decode(encoding, raw, values)
    return panels.pack(encoding, blocks["d"], numbers), raw, values


def tensor(encoding: str, shape: tuple[int, ...], inputs: int, dtype: Any = jnp.float32) -> tuple[PanelTensor, Any]:
    split = len(shape) - inputs
    bytes_, _, values = made(encoding, int(np.prod(shape[:split])), int(np.prod(shape[split:])))
    return PanelTensor(jnp.asarray(bytes_), encoding, shape, jnp.dtype(dtype)), jnp.asarray(values.reshape(shape))


@encodings
@pytest.mark.parametrize("shape", [(70, 96), (16, 32), (1, 64)])
def test_panels_are_those_of_the_native_kernels(encoding: str, shape: tuple[int, int]) -> None:
    if not native_enabled():
        pytest.skip("the C++ kernels are not installed")
    import gemwright_native

    bytes_, raw, _ = made(encoding, *shape)
    assert len(bytes_) == panels.packed_bytes(encoding, *shape) == gemwright_native.packed_bytes(encoding, shape)
    np.testing.assert_array_equal(bytes_, gemwright_native.repack(encoding, raw, shape))


@encodings
def test_decoding_gives_the_very_values(encoding: str) -> None:
    bytes_, _, values = made(encoding, 70, 96)
    here = panels.decode(bytes_, encoding, 96)
    on_device = jax.jit(lambda bytes_: panels.decode(bytes_, encoding, 96))(jnp.asarray(bytes_))
    for decoded in (here, on_device):
        np.testing.assert_array_equal(np.asarray(decoded)[:70], values)
        assert np.isnan(np.asarray(decoded)[70:]).all()


@encodings
@pytest.mark.parametrize(("shape", "inputs"), [((70, 64), 1), ((3, 16, 96), 1), ((33, 2, 32), 2)])
def test_xla_multiplies_as_by_the_array(
    encoding: str, shape: tuple[int, ...], inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, array = tensor(encoding, shape, inputs)
    x = jax.random.normal(jax.random.key(0), (2, 5, *shape[len(shape) - inputs :]))
    expected = weights.matmul(x, array, inputs=inputs)
    product = jax.jit(lambda weight: weights.matmul(x, weight, inputs=inputs))(weight)
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-4)
    monkeypatch.setattr(weights, "VALUES_PER_PRODUCT", 2 * panels.LANES * 64)  # two panels at a time and what is left
    product = jax.jit(lambda weight: weights.matmul(x, weight, inputs=inputs))(weight)
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-4)


@encodings
def test_bfloat16_activations_meet_weights_rounded_to_bfloat16(encoding: str) -> None:
    weight, array = tensor(encoding, (70, 64), 1, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (5, 64), jnp.bfloat16)
    product = weights.matmul(x, weight, out=jnp.float32)
    np.testing.assert_allclose(product, weights.matmul(x, array.astype(jnp.bfloat16), out=jnp.float32), atol=1e-4)
    assert weights.rows(weight, jnp.asarray([3])).dtype == weights.matmul(x, weight).dtype == jnp.bfloat16


@encodings
def test_rows_are_the_very_values(encoding: str) -> None:
    weight, array = tensor(encoding, (70, 64), 1)
    ids = jnp.asarray([[0, 69, 17], [5, 70, -1]])
    found = jax.jit(weights.rows)(weight, ids)
    assert jnp.array_equal(found[0], array[ids[0]])
    assert jnp.array_equal(found[1, 0], array[5])
    assert jnp.all(jnp.isnan(found[1, 1:]))


@encodings
def test_the_largest_products_are_those_of_the_array(encoding: str) -> None:
    weight, array = tensor(encoding, (70, 64), 1)
    x = jax.random.normal(jax.random.key(2), (3, 64))
    values, ids = weights.top(x, weight, 65, 4)
    expected, places = weights.top(x, array, 65, 4)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ids, places)
    assert ids.max() < 65


def test_gradients_pass_through() -> None:
    weight, array = tensor("Q4_0", (70, 64), 1)
    x = jax.random.normal(jax.random.key(1), (4, 64))
    gradient = jax.grad(lambda x, w: jnp.sum(weights.matmul(x, w) * jnp.arange(70.0)))
    np.testing.assert_allclose(gradient(x, weight), gradient(x, array), rtol=1e-5, atol=1e-3)


def test_a_gradient_does_not_keep_decoded_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "VALUES_PER_PRODUCT", 2 * panels.LANES * 64)
    weight, _ = tensor("Q8_0", (320, 64), 1)
    x = jnp.ones((4, 64))
    program = str(jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(jnp.sin(weights.matmul(x, w)))))(x, weight))
    sizes = [np.prod([int(size) for size in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", program)]
    assert max(sizes) == 2 * panels.LANES * 64
