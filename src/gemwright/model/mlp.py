"""The gated MLP (GeGLU)."""

from gemwright import ops, weights
from gemwright.model.spec import MlpWeights
from gemwright.typing import Array, Float


def apply(params: MlpWeights, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """down(gelu(gate(x)) * up(x))."""
    gate = weights.matmul(x, params.gate)
    up = weights.matmul(x, params.up)
    return weights.matmul(ops.gelu(gate) * up, params.down)
