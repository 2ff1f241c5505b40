"""The gated MLP (GeGLU)."""

from gemwright import ops
from gemwright.model.branch import Branch
from gemwright.model.spec import MlpWeights
from gemwright.typing import Array, Float


def apply(params: MlpWeights, branch: Branch, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Add down(gelu(gate(x)) * up(x))."""
    gate, up = branch.enter(x, params.gate, params.up)
    gate, up = ops.biased(gate, params.gate_bias), ops.biased(up, params.up_bias)
    return branch.leave(x, up, params.down, params.down_bias, gate=gate)
