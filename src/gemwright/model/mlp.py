"""The gated MLP (GeGLU)."""

from gemwright import ops, weights
from gemwright.model.spec import MlpWeights
from gemwright.typing import Array, Float


def apply(params: MlpWeights, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """down(gelu(gate(x)) * up(x))."""
    gate = ops.biased(weights.matmul(x, params.gate), params.gate_bias)
    up = ops.biased(weights.matmul(x, params.up), params.up_bias)
    return ops.biased(weights.matmul(ops.gelu(gate) * up, params.down), params.down_bias)
