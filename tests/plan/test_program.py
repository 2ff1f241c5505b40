"""Operations and collectives counted in a program's text, beside XLA's own count and plain arithmetic."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gemwright.plan.program import count

CONVOLUTION = """
ENTRY %main (a: bf16[16,8,256], b: bf16[16,2048,256]) -> f32[16,8,2048] {
  %a = bf16[16,8,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,2048,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = f32[16,8,2048]{2,1,0:T(8,128)} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, \
dim_labels=0bf_0oi->0bf, operand_precision={highest,highest}
}
"""
"""A product of batches, as the compiler for TPUs writes it."""

LOOP = """
%body (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %p = (s32[], f32[64,32]{1,0}) parameter(0)
  %x = f32[64,32]{1,0} get-tuple-element(%p), index=1
  %g = f32[256,32]{1,0} all-gather(%x), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %s = f32[64,32]{1,0} reduce-scatter(%g), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
}
ENTRY %main (a: f32[64,32]) -> f32[] {
  %a = (s32[], f32[64,32]{1,0}) parameter(0)
  %w = (s32[], f32[64,32]{1,0}) while(%a), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  ROOT %r = f32[] all-reduce(%w), replica_groups=[1,4]<=[4], to_apply=%add
}
"""


def _compile(function: Any, *arguments: Any) -> jax.stages.Compiled:
    return jax.jit(function).lower(*arguments).compile()


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_are_those_of_xlas_count():
    def function(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.einsum("bij,bjk->bik", x, y) @ z

    compiled = _compile(function, _shape(4, 32, 64), _shape(4, 64, 48), _shape(48, 24))
    expected = 2 * 4 * 32 * 48 * (64 + 24)
    assert count(compiled.as_text() or "").flops == expected
    cost: Any = compiled.cost_analysis()
    assert cost["flops"] == pytest.approx(expected, rel=0.01)


def test_a_loop_counts_as_often_as_it_runs():
    def function(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]

    compiled = _compile(function, _shape(8, 64), _shape(5, 64, 64))
    assert count(compiled.as_text() or "").flops == 5 * 2 * 8 * 64 * 64


def test_a_product_of_batches_written_as_a_convolution():
    assert count(CONVOLUTION).flops == 2 * math.prod((16, 8, 2048, 256))


def test_collectives_send_what_a_ring_sends():
    gathered = 4 * 256 * 32
    expected = {"all-gather": 7 * gathered, "all-reduce": 2 * 4, "reduce-scatter": 7 * gathered}
    assert count(LOOP).collectives == expected
