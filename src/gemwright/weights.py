"""Weights are leaves: a plain array, or any leaf that knows how to be multiplied and looked up.

No layer knows which kind it holds. A quantised tensor or a low-rank update is one more class with the members of
`PackedWeight`.
"""

import math
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemwright.typing import Array, Float, Int


@runtime_checkable
class PackedWeight(Protocol):
    """A weight that is not a plain array: a pytree that stands for an array of `shape` in `dtype`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which it is computed with."""
        ...

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x with its own last ones, in float32."""
        ...

    def rows(self, ids: Array) -> Array:
        """`self[ids]` along the first axis."""
        ...

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """The `count` largest products of each row of x with its own first `limit` rows, in float32, and their ids."""
        ...


Weight: TypeAlias = Array | PackedWeight


def matmul(x: Array, weight: Weight, *, inputs: int = 1, out: DTypeLike | None = None) -> Array:
    """Apply a linear map: [*batch, *in] and a weight [*out, *in] give [*batch, *out].

    Args:
        x: activations.
        weight: any kind of weight.
        inputs: how many of the weight's last axes are contracted.
        out: dtype of the result, `x.dtype` unless given. Products are accumulated in float32.
    """
    out = x.dtype if out is None else out
    if not isinstance(weight, Array):
        return weight.matmul(x, inputs).astype(out)
    batch, outputs = x.shape[: x.ndim - inputs], weight.shape[: weight.ndim - inputs]
    # Two plain matrices: with more axes XLA's CPU backend transposes the weight anew in every call.
    width = math.prod(x.shape[x.ndim - inputs :])
    # Accelerators round float32 operands unless told not to.
    precision = jax.lax.Precision.HIGHEST if weight.dtype == jnp.float32 else None
    product = jax.lax.dot_general(
        x.reshape(-1, width),
        weight.reshape(-1, width),
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return product.reshape(*batch, *outputs).astype(out)


def rows(table: Weight, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
    """Look up rows of a table [V, D]. Ids outside the table give NaN, never another row."""
    return jnp.take(table, ids, axis=0, mode="fill") if isinstance(table, Array) else table.rows(ids)


def top(
    x: Float[Array, "B D"], table: Weight, limit: int, count: int
) -> tuple[Float[Array, "B count"], Int[Array, "B count"]]:
    """The largest products of each row with the first `limit` rows of a table [V, D], best first, and their ids.

    They are the numbers that `matmul` gives in float32; of equal ones the lower id comes first.
    """
    if not isinstance(table, Array):
        return table.top(x, limit, count)
    products = matmul(x, table, out=jnp.float32)
    return largest(jnp.where(jnp.arange(table.shape[0]) < limit, products, -jnp.inf), count)


def largest(x: Float[Array, "B V"], count: int) -> tuple[Float[Array, "B count"], Int[Array, "B count"]]:
    """The `count` largest entries of each row, best first, and where they are; of equal ones the first."""
    # Behind a barrier: XLA's CPU backend would sort all of x for whoever takes a slice of the result.
    values, places = jax.lax.optimization_barrier(jax.lax.top_k(x, count))
    return values, places
