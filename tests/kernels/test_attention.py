"""The attention kernel of gemwright-native, through `attend_to_ring`."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemwright.kernels.attention import attend_to_ring
from gemwright.kernels.packed import use_native

BATCH, HEADS, KV_HEADS, WIDTH, SLOTS = 2, 4, 2, 32, 24


@pytest.mark.skipif(not use_native(), reason="gemwright-native is not here, or the device is no CPU")
@pytest.mark.parametrize("tokens", [2, 4, 8])
@pytest.mark.parametrize("window", [None, SLOTS - 8])
def test_few_tokens_give_to_the_bit_what_they_give_one_by_one(tokens: int, window: int | None):
    numbers = np.random.default_rng(0)

    def array(*shape: int):
        return jnp.asarray(numbers.standard_normal(shape), jnp.float32)

    lengths = jnp.asarray([5, 5 + tokens] if window is None else [50, 3], jnp.int32)
    q, k, v = (array(BATCH, tokens, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS))
    ring = array(BATCH, KV_HEADS, SLOTS, WIDTH), array(BATCH, KV_HEADS, SLOTS, WIDTH)
    rotation, gains = array(BATCH, tokens, 2, WIDTH // 2), (array(WIDTH), array(WIDTH))
    positions = lengths[:, None] + jnp.arange(tokens, dtype=jnp.int32)

    def attend(part: slice, ring: tuple[jnp.ndarray, jnp.ndarray]):
        arrays = (q[:, part], k[:, part], v[:, part])
        where = positions[:, part], lengths + part.start, rotation[:, part]
        return attend_to_ring(*arrays, ring, *where, gains, window=window, scale=0.2, cap=None, eps=1e-6)

    together, (keys, values) = attend(slice(0, tokens), ring)
    for at in range(tokens):
        one, ring = attend(slice(at, at + 1), ring)
        np.testing.assert_array_equal(together[:, at : at + 1], one)
    np.testing.assert_array_equal(keys, ring[0])
    np.testing.assert_array_equal(values, ring[1])
