"""A residual branch begins with a norm and linear maps, and ends with a linear map, a norm and a sum.

That is where a model keeps its weights, so each end is one kernel where `kernels/packed.py` has one.
"""

from typing import NamedTuple

from gemwright import ops, weights
from gemwright.kernels import packed
from gemwright.typing import Array, Float
from gemwright.weights import Weight


class Branch(NamedTuple):
    """The norms of one branch.

    Attributes:
        norm: [D] gain at its beginning; None leaves the input as it is.
        post_norm: [D] gain at its end, where the model has one.
        eps: Of both.
    """

    norm: Array | None
    post_norm: Array | None
    eps: float

    def enter(self, x: Float[Array, "B T D"], *maps: Weight) -> tuple[Array, ...]:
        """Each map of norm(x): a weight [*out, D] gives [B, T, *out]."""
        if packed.run_together(x, maps):
            return packed.products(x, maps, gain=self.norm, eps=self.eps)
        if self.norm is not None:
            x = ops.rms_norm(x, self.norm, self.eps)
        return tuple(weights.matmul(x, weight) for weight in maps)

    def leave(
        self,
        x: Float[Array, "B T D"],
        inner: Float[Array, "B T *in"],
        weight: Weight,
        bias: Float[Array, " D"] | None,
        *,
        gate: Float[Array, "B T *in"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Add norm(weight inner + bias) to x; `inner` is first multiplied by gelu(gate) if there is a gate."""
        if bias is None and packed.run_together(x, (weight,)):
            return packed.products(inner, (weight,), gate=gate, residual=x, post_gain=self.post_norm, eps=self.eps)[0]
        if gate is not None:
            inner = ops.gelu(gate) * inner
        out = ops.biased(weights.matmul(inner, weight, inputs=inner.ndim - 2), bias)
        return x + (out if self.post_norm is None else ops.rms_norm(out, self.post_norm, self.eps))
