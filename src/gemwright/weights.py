"""Weights are leaves: a plain array, or any leaf that knows how to be multiplied and looked up.

No layer knows which kind it holds. A quantised tensor or a low-rank update is one more class with the members of
`WeightLeaf`.
"""

import functools
import math
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemwright import tree
from gemwright.kernels import native, panels
from gemwright.kernels.native import Repacked
from gemwright.typing import Array, Float, Int

VALUES_PER_PRODUCT = 1 << 24
"""Values that a product with a `PanelTensor` decodes at a time."""


@runtime_checkable
class WeightLeaf(Protocol):
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


Weight: TypeAlias = Array | WeightLeaf


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


@tree.node
class PackedTensor:
    """A weight in a block format of GGUF or in plain floats, rearranged for the kernels; it stands for float32.

    Attributes:
        packed: [bytes] uint8.
        encoding: Of the values, such as "Q4_K" or "BF16".
        shape: Of the array that it stands for, outputs first.
        activation_bits: Bits to which activations are quantized for it: 8 or 16.
    """

    packed: Array
    encoding: str = tree.static()
    shape: tuple[int, ...] = tree.static()
    activation_bits: int = tree.static()

    @property
    def dtype(self) -> jnp.dtype:
        """Activations are float32 whatever the bits of the weight."""
        return jnp.dtype(jnp.float32)

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x; block formats meet activations of 8 or 16 bits, or bfloat16."""
        kernels = native.library()
        split = len(self.shape) - inputs
        width = math.prod(self.shape[split:])
        flat = x.reshape(-1, width).astype(jnp.float32)
        y = kernels.matmul(
            flat, self.packed, self.encoding, math.prod(self.shape[:split]), activation_bits=self.activation_bits
        )
        return y.reshape(*x.shape[: x.ndim - inputs], *self.shape[:split])

    def rows(self, ids: Array) -> Array:
        """Decode rows; ids outside the table give NaN."""
        flat = ids.reshape(-1).astype(jnp.int32)
        kernels, width = native.library(), self.shape[-1]
        return kernels.rows(self.packed, flat, self.encoding, width).reshape(*ids.shape, width)

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """The `count` largest products of each row of x [B, in] with the first `limit` rows, and which they are."""
        flat = x.astype(jnp.float32)
        return native.library().top(flat, self.packed, self.encoding, self.shape[0], limit, count)

    @classmethod
    def to_device(cls, repacked: Repacked, shape: tuple[int, ...], *, activation_bits: int) -> "PackedTensor":
        """Copy a repacked weight to the device."""
        return cls(jax.device_put(repacked.packed), repacked.layout, shape, activation_bits)


@tree.node
class PanelTensor:
    """A packed weight that XLA decodes where it is used, some panels at a time.

    Attributes:
        packed: [bytes] uint8, as `kernels.panels.pack` makes them.
        encoding: A key of `kernels.panels.BITS`.
        shape: Of the array that it stands for, outputs first.
        dtype: Of the activations, in which its values are multiplied.
    """

    packed: Array
    encoding: str = tree.static()
    shape: tuple[int, ...] = tree.static()
    dtype: jnp.dtype = tree.static()

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x, in float32."""
        outputs, width = self.shape[:-inputs], math.prod(self.shape[-inputs:])
        flat = x.reshape(-1, width).astype(self.dtype)
        precision = jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else None

        # Without the checkpoint, a gradient would keep all panels decoded.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def product(x: Array, panel: Array, real: Array) -> Array:
            weight = jnp.where(real[:, None], panels.decode(panel, self.encoding, width), 0).astype(self.dtype)
            return jax.lax.dot_general(
                x, weight, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
            )

        def one(part: tuple[Array, Array]) -> Array:
            return product(flat, *part)

        parts, count = self._panels(width), math.prod(outputs)
        at_once = max(1, min(VALUES_PER_PRODUCT // (panels.LANES * width), len(parts)))
        # The NaN of rows that the last panel lacks would come through in a gradient.
        real = jnp.arange(len(parts) * panels.LANES).reshape(-1, panels.LANES) < count
        y = jax.lax.map(one, (parts, real), batch_size=at_once)  # [panels, batch, lanes]
        y = y.swapaxes(0, 1).reshape(len(flat), -1)[:, :count]
        return y.reshape(*x.shape[: x.ndim - inputs], *outputs)

    def rows(self, ids: Array) -> Array:
        """Decode rows; ids outside the table give NaN."""
        count, width = self.shape
        flat = ids.reshape(-1)
        known = (flat >= 0) & (flat < count)
        row = jnp.where(known, flat, 0)
        scales, stored = panels.split_blocks(
            self._panels(width)[row // panels.LANES].reshape(len(flat), width // panels.GROUP, -1)
        )
        lane = (row % panels.LANES)[:, None, None]
        scales = jnp.take_along_axis(scales, lane, axis=2)
        stored = jnp.take_along_axis(stored, lane[..., None, None], axis=3)
        values = panels.block_values(scales, stored, self.encoding).reshape(len(flat), width).astype(self.dtype)
        return jnp.where(known[:, None], values, jnp.nan).reshape(*ids.shape, width)

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """The `count` largest products of each row of x [B, in] with the first `limit` rows, and which they are."""
        products = self.matmul(x, 1)
        known = jnp.where(jnp.arange(self.shape[0]) < limit, products, -jnp.inf)
        # Behind a barrier: XLA's CPU backend would sort all of it for whoever takes a slice of the result.
        values, places = jax.lax.optimization_barrier(jax.lax.top_k(known, count))
        return values, places

    def _panels(self, width: int) -> Array:
        return self.packed.reshape(-1, width // panels.GROUP * panels.block_bytes(self.encoding))
