"""The gated MLP (GeGLU)."""

from gemwright import ops
from gemwright.linear import Norms, norm_project, project_norm_add
from gemwright.model.params import MlpWeights
from gemwright.typing import Array, Float


def apply(params: MlpWeights, norms: Norms, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Return x + down(gelu(gate(x)) * up(x)), with norms."""
    gate, up = norm_project(x, norms, params.gate, params.up)
    gate, up = ops.biased(gate, params.gate_bias), ops.biased(up, params.up_bias)
    return project_norm_add(x, up, params.down, params.down_bias, norms, gate=gate)
