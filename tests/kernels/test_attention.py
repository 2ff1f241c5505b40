"""Attention with a rotating cache by the kernel against the reference, with caches of both dtypes."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright.kernels import choice
from gemwright.kernels.attention import attend_cached
from gemwright.kernels.native import native_enabled
from gemwright.linear import Norms
from gemwright.model import attention
from gemwright.model.config import Attention, Rope
from gemwright.model.params import AttentionWeights
from gemwright.model.state import KVCache, Positions

if not native_enabled():
    pytest.skip("the C++ kernels are not installed", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, SLOTS = 24, 96
PLAIN = Attention(4, 2, head_dim=16, query_scalar=16.0, rope=Rope(fraction=0.0))
"""Keys are stored as projected, so that both versions store equal bits."""
SPECS = {
    "global": PLAIN,
    "capped": replace(PLAIN, soft_cap=2.0),
    "local": replace(PLAIN, window=7),
    "rotated": replace(PLAIN, rope=Rope(), qk_norm=True, window=7),
}
TOLERANCE = 1e-5
"""Absolute, of results of the order of 1."""
TIE = 1e-2
"""The same where a rotated key, between two bfloat16 numbers, is rounded up by one version and down by the other."""
CHUNKS = ((1, 0), (5, 2), (1, 0), (40, 3), (5, 1), (1, 0))
"""Tokens of a chunk, and how many of the second sequence are padding on its right."""
ONE_BY_ONE = 4, 2, 32, 24
"""Heads, key/value heads, head width and cells of the cache."""


def _weights(spec: Attention) -> AttentionWeights:
    random = np.random.default_rng(0)
    N, K, H, D = spec.heads, spec.kv_heads, spec.head_dim, WIDTH
    shapes: dict[str, tuple[int, ...]] = {"q": (N, H, D), "k": (K, H, D), "v": (K, H, D), "o": (D, N, H)}
    shapes |= {"q_norm": (H,), "k_norm": (H,)} if spec.qk_norm else {}
    drawn = {name: jnp.asarray(random.normal(size=s, scale=D**-0.5), jnp.float32) for name, s in shapes.items()}
    return AttentionWeights(**({"o_bias": None, "q_norm": None, "k_norm": None} | drawn))


def _run(spec: Attention, dtype: str, impl: choice.Impl) -> tuple[list[Any], KVCache]:
    params, random = _weights(spec), np.random.default_rng(1)
    shape = (2, spec.kv_heads, min(spec.window or SLOTS, SLOTS), spec.head_dim)
    state, lengths, results = KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)), np.zeros(2, np.int32), []
    branch = Norms(None, None, 1e-6)
    step = jax.jit(lambda x, positions, state: attention.apply(spec, params, branch, x, positions, state))
    for tokens, padding in CHUNKS:
        x = jnp.asarray(random.standard_normal((2, tokens, WIDTH)), jnp.float32)
        valid = np.arange(tokens) < np.array([[tokens], [tokens - padding]])
        positions = np.where(valid, lengths[:, None] + np.arange(tokens), -1)
        with choice.use(impl):
            y, state = step(x, Positions(jnp.asarray(positions), None, jnp.asarray(lengths)), state)
        assert state is not None
        lengths += valid.sum(1, dtype=np.int32)
        results.append(np.asarray(y)[valid])
    return results, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SPECS)
def test_the_kernel_equals_the_reference(kind: str, dtype: str):
    spec = SPECS[kind]
    (found, cache), (expected, same) = (_run(spec, dtype, impl) for impl in ("native", "reference"))
    ties = dtype == "bfloat16" and spec.qk_norm
    for y, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(y, e, rtol=0, atol=TIE if ties else TOLERANCE)
    for part, e in zip(jax.tree.leaves(cache), jax.tree.leaves(same), strict=True):
        assert part.dtype == e.dtype == dtype
        part, e = (np.asarray(side, np.float32) for side in (part, e))
        np.testing.assert_allclose(part, e, rtol=2.0**-7 if ties else 1e-5, atol=1e-6)
        assert np.mean(part == e) > 0.99 or dtype == "float32"


@pytest.mark.parametrize("tokens", [2, 4, 8])
@pytest.mark.parametrize("window", [None, 16])
def test_few_tokens_give_the_bits_of_single_tokens(tokens: int, window: int | None):
    numbers, (N, KV, H, S) = np.random.default_rng(0), ONE_BY_ONE

    def array(*shape: int):
        return jnp.asarray(numbers.standard_normal(shape), jnp.float32)

    lengths = jnp.asarray([5, 5 + tokens] if window is None else [50, 3], jnp.int32)
    q, k, v = (array(2, tokens, heads, H) for heads in (N, KV, KV))
    cache = array(2, KV, S, H), array(2, KV, S, H)
    rotation, gains = array(2, tokens, 2, H // 2), (array(H), array(H))
    positions = lengths[:, None] + jnp.arange(tokens, dtype=jnp.int32)

    def attend(part: slice, cache: tuple[jnp.ndarray, jnp.ndarray]):
        arrays = (q[:, part], k[:, part], v[:, part])
        where = positions[:, part], lengths + part.start, rotation[:, part]
        return attend_cached(*arrays, cache, *where, gains, window=window, scale=0.2, cap=None, eps=1e-6)

    together, (keys, values) = attend(slice(0, tokens), cache)
    for at in range(tokens):
        one, cache = attend(slice(at, at + 1), cache)
        np.testing.assert_array_equal(together[:, at : at + 1], one)
    np.testing.assert_array_equal(keys, cache[0])
    np.testing.assert_array_equal(values, cache[1])
