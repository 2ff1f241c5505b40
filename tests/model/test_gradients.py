"""Gradients of a model whose weights stay in their stored format, against those with decoded float32 arrays."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright import tree, weights
from gemwright.checkpoint.arena import aligned
from gemwright.checkpoint.files import ggml
from gemwright.kernels import native, panels
from gemwright.kernels.native import native_enabled
from gemwright.model.params import ModelWeights, ParamSpec, param_specs
from gemwright.model.transformer import forward, logits
from gemwright.weights import PackedTensor, PanelTensor, Weight, WeightLeaf
from tests.helpers import random_ids
from tests.tiny.config import make_config, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
kernels = pytest.mark.skipif(not native_enabled(), reason="the C++ kernels are not installed")
CONFIG = replace(make_config(), layers=make_config().layers[:1])
TOKENS = random_ids(CONFIG.vocab, (2, 9))
EXACT = 1e-5
"""Tolerance of gradients if activations are not quantized: norm of the difference by norm, some float32 roundings."""
QUANTIZED = {8: 0.1, 16: 1e-3}
"""Tolerance if activations are quantized to this number of bits in the forward pass. The backward pass is exact.

Of the largest value of a block of 32, 8 bits keep 1 / 254, and a gradient is the product of a dozen such activations.
"""


@tree.node
class LowRank:
    """A weight [*out, in] plus scale * b @ a, a low-rank update with a [rank, in] and b [*out, rank]."""

    base: Weight
    a: jax.Array
    b: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> jnp.dtype:
        return self.base.dtype

    def matmul(self, x: jax.Array, inputs: int) -> jax.Array:
        assert inputs == 1
        update = weights.matmul(weights.matmul(x, self.a), self.b, out=jnp.float32)
        return weights.matmul(x, self.base, out=jnp.float32) + update

    def rows(self, ids: jax.Array) -> jax.Array:
        return weights.rows(self.base, ids) + self.b[ids] @ self.a

    def top(self, x: jax.Array, limit: int, count: int) -> tuple[jax.Array, jax.Array]:
        return weights.largest(self.matmul(x, 1)[:, :limit], count)


def _stored(encoding: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix in an encoding, and its values after decoding."""
    if encoding in ("F32", "BF16"):
        rounded = np.asarray(jnp.asarray(values, jnp.float32 if encoding == "F32" else jnp.bfloat16))
        return rounded.view(np.uint8).reshape(-1), rounded.astype(np.float32)
    raw, decoded = ggml.encode(encoding, values), np.empty_like(values)
    ggml.decode(encoding, raw, decoded)
    return raw, decoded


def _packed(encoding: str, bits: int, shape: tuple[int, ...], matrix: np.ndarray) -> Weight:
    raw, _ = _stored(encoding, matrix)
    repacked = native.repack(encoding, raw, matrix.shape, allocate=aligned, on_rows_read=lambda: None)
    return PackedTensor.to_device(repacked, shape, activation_bits=bits)


def _paneled(encoding: str, _: int, shape: tuple[int, ...], matrix: np.ndarray) -> Weight:
    blocks = _stored(encoding, matrix)[0].view(ggml.ENCODINGS[encoding].block).reshape(len(matrix), -1)
    numbers = blocks["qs"]
    if encoding == "Q4_0":
        numbers = np.concatenate([numbers & 15, numbers >> 4], axis=-1).view(np.int8) - np.int8(8)
    return PanelTensor(jnp.asarray(panels.pack(encoding, blocks["d"], numbers)), encoding, shape, jnp.dtype("float32"))


def _decoded(encoding: str, _: int, shape: tuple[int, ...], matrix: np.ndarray) -> Weight:
    return jnp.asarray(_stored(encoding, matrix)[1].reshape(shape))


def _params(make: Any, encoding: str, bits: int) -> ModelWeights:
    """Return a model whose matrices are made by `make`; two of each layer also have a low-rank update."""
    plain, numbers = tree.flatten(make_weights(CONFIG)), np.random.default_rng(1)

    def leaf(path: str, param: ParamSpec) -> Any:
        if not param.linear:
            return plain[path]
        weight = make(encoding, bits, param.shape, np.asarray(plain[path]).reshape(-1, param.fan_in))
        if not path.endswith((".q", ".up")):
            return weight
        a, b = (0.1 * numbers.standard_normal(shape) for shape in ((3, param.fan_in), (*param.shape[:-1], 3)))
        return LowRank(weight, jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))

    return tree.map_with_path(leaf, param_specs(CONFIG))


def _trainable(path: str, _: Any) -> bool:
    return path.endswith(("norm", ".a", ".b"))


@jax.jit
def _gradients(trainable: ModelWeights, frozen: ModelWeights) -> Any:
    def loss(trainable: ModelWeights) -> jax.Array:
        params = tree.combine(trainable, frozen)
        hidden, _ = forward(CONFIG, params, jnp.asarray(TOKENS))
        logprobs = jax.nn.log_softmax(logits(CONFIG, params, hidden)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logprobs, jnp.asarray(TOKENS)[:, 1:, None], axis=-1))

    return jax.grad(loss)(trainable)


@functools.cache
def _expected(encoding: str) -> dict[str, np.ndarray]:
    return tree.flatten(_gradients(*tree.partition(_params(_decoded, encoding, 8), _trainable)))


def _error(make: Any, encoding: str, bits: int) -> float:
    """Return the largest relative error of a leaf's gradient, of which none is small."""
    params = _params(make, encoding, bits)
    assert isinstance(params.layers[0].mlp.up, WeightLeaf)
    found = tree.flatten(_gradients(*tree.partition(params, _trainable)))
    expected = _expected(encoding)
    assert found.keys() == expected.keys()
    assert {path.split(".")[-1] for path in found} >= {"a", "b", "mixer_norm", "mlp_post_norm", "q_norm", "final_norm"}
    assert all(np.linalg.norm(value) > 1e-4 for value in expected.values())
    return max(np.linalg.norm(found[path] - value) / np.linalg.norm(value) for path, value in expected.items())


@kernels
@pytest.mark.parametrize("encoding", ["F32", "BF16"])
def test_weights_of_plain_floats(encoding: str):
    assert _error(_packed, encoding, 8) < EXACT


@kernels
@pytest.mark.parametrize(("encoding", "bits"), [("Q8_0", 8), ("Q4_0", 8), ("Q4_0", 16)])
def test_quantized_weights_and_activations(encoding: str, bits: int):
    assert 1e-6 < _error(_packed, encoding, bits) < QUANTIZED[bits]


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_0"])
def test_panels(encoding: str):
    assert _error(_paneled, encoding, 8) < EXACT
