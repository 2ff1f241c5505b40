"""The tower against its formulas in float64, and what it needs of memory."""

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright import tree
from gemwright.checkpoint.arena import aligned
from gemwright.kernels import native
from gemwright.kernels.native import native_enabled
from gemwright.model import vision
from gemwright.model.config import Attention, Config, Layer, Mlp, Vision
from gemwright.model.params import ParamSpec, VisionWeights, param_specs
from gemwright.weights import PackedTensor

AFFINE = Vision(20, 16, projector="affine", patch=5, width=36, depth=2, heads=3, hidden=52)
NORMED = Vision(24, 4, projector="normed", patch=4, width=36, depth=2, heads=2, hidden=52)


def _spec(tower: Vision) -> Any:
    decoder = Config(48, 97, (Layer(Attention(4, 1, 16, 16.0), Mlp(8)),), max_length=256)
    return param_specs(replace(decoder, vision=tower)).vision


def _weights(tower: Vision, dtype: Any = jnp.float32) -> VisionWeights:
    """Random weights, gains and biases."""
    numbers = np.random.default_rng(0)

    def draw(_: str, param: ParamSpec) -> jax.Array:
        values = numbers.standard_normal(param.shape) * (param.fan_in**-0.5 if param.linear else 0.3)
        return jnp.asarray(values + (param.init == "ones"), dtype)

    return tree.map_with_path(draw, _spec(tower))


def _images(tower: Vision, count: int = 2) -> jax.Array:
    shape = (count, tower.image_size, tower.image_size, 3)
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, shape), jnp.float32)


def _exact(tower: Vision, params: Any, image: Any) -> np.ndarray:
    """Encode one image in float64, with plain loops."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    image, side, eps = np.asarray(image, np.float64), tower.patch, tower.norm_eps

    def norm(x: Any, gain: Any, bias: Any) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * gain + bias

    corners = [(row * side, column * side) for row in range(tower.grid) for column in range(tower.grid)]
    patches = [image[top : top + side, left : left + side] for top, left in corners]
    x = np.stack([patch.transpose(2, 0, 1).ravel() @ p.patch.T + p.patch_bias for patch in patches]) + p.positions
    head = tower.width // tower.heads
    for layer in p.layers:
        h = norm(x, layer.mixer_norm, layer.mixer_norm_bias)
        q, k, v = h @ layer.q.T + layer.q_bias, h @ layer.k.T + layer.k_bias, h @ layer.v.T + layer.v_bias
        mixed = np.empty_like(v)
        for part in (slice(n * head, (n + 1) * head) for n in range(tower.heads)):
            weight = np.exp(q[:, part] @ k[:, part].T / np.sqrt(head))
            mixed[:, part] = weight / weight.sum(-1, keepdims=True) @ v[:, part]
        x = x + mixed @ layer.o.T + layer.o_bias
        h = norm(x, layer.mlp_norm, layer.mlp_norm_bias) @ layer.up.T + layer.up_bias
        h = h * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ layer.down.T + layer.down_bias
    x = norm(x, p.final_norm, p.final_norm_bias)
    square = int((tower.grid**2 // tower.tokens) ** 0.5)
    blocks = [(row, column) for row in range(0, tower.grid, square) for column in range(0, tower.grid, square)]
    grid = x.reshape(tower.grid, tower.grid, -1)
    x = np.stack([grid[row : row + square, column : column + square].mean((0, 1)) for row, column in blocks])
    if tower.projector == "affine":
        return x @ p.project.T + p.project_bias
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * (1 + p.project_norm) @ p.project.T


@pytest.mark.parametrize(
    ("tower", "scores"), [(AFFINE, 2 * 16**2), (NORMED, 1), (NORMED, 2**24)], ids=["two heads", "one", "all at a time"]
)
def test_rows_are_those_of_the_formulas(tower: Vision, scores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vision, "SCORES", scores)
    jax.clear_caches()
    params, images = _weights(tower), _images(tower)
    rows = vision.encode(tower, params, images)
    assert rows.shape == (2, tower.tokens, 48)
    exact = np.stack([_exact(tower, params, image) for image in images])
    np.testing.assert_allclose(rows, exact, rtol=0, atol=3e-6 * np.abs(exact).max())


def test_activations_have_the_dtype_of_the_weights():
    params = _weights(NORMED, jnp.bfloat16)
    rows = vision.encode(NORMED, params, _images(NORMED))
    assert rows.dtype == jnp.bfloat16
    exact = np.stack([_exact(NORMED, params, image) for image in _images(NORMED)])
    # Some thirty roundings on the way, each of 2^-9 or less, in random directions.
    error = np.sqrt(np.mean((np.asarray(rows, np.float64) - exact) ** 2))
    assert 0 < error < 30**0.5 * 2.0**-9 * np.abs(exact).max()


@pytest.mark.skipif(not native_enabled(), reason="the C++ kernels are not installed")
def test_packed_weights_see_as_plain_ones():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), _weights(NORMED))

    def pack(path: str, param: ParamSpec) -> Any:
        values = tree.flatten(params)[path]
        raw = np.asarray(values.astype(jnp.bfloat16)).view(np.uint8)
        shape = (param.shape[0], math.prod(param.shape[1:]))
        if not param.linear:
            return values
        made = native.repack("BF16", raw, shape, allocate=aligned, on_rows_read=lambda: None)
        return PackedTensor.to_device(made, param.shape, activation_bits=8)

    rows = vision.encode(NORMED, tree.map_with_path(pack, _spec(NORMED)), _images(NORMED))
    plain = vision.encode(NORMED, params, _images(NORMED))
    np.testing.assert_allclose(rows, plain, rtol=0, atol=3e-6 * np.abs(plain).max())


def test_a_large_picture_does_not_hold_the_scores_of_all_heads():
    """At 896 px the scores of one head are the most at a time, and no array is larger than the MLP's inside."""
    tower = Vision(896, 256, projector="normed")
    params = jax.tree.map(lambda param: jax.ShapeDtypeStruct(param.shape, jnp.float32), _spec(tower).layers[0])
    x = jax.ShapeDtypeStruct((1, tower.grid**2, tower.width), jnp.float32)
    program = str(jax.make_jaxpr(partial(vision.layer, tower))(params, x))
    shapes = [map(int, shape.split(",")) for shape in re.findall(r"f32\[([\d,]+)\]", program)]
    assert max(map(math.prod, shapes)) == 4096 * tower.hidden > 4096**2
