"""Weights: a plain array, or any class with the members of `WeightLeaf`, such as a quantized tensor.

Layers call `matmul`, `rows` and `top` and do not depend on the kind. All kinds have gradients with respect to
activations; those of `PackedTensor` are of exact products, and decode some rows of the weight at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gemwright import tree
from gemwright.kernels import native, panels
from gemwright.kernels.choice import require_cpu
from gemwright.kernels.native import Repacked
from gemwright.sharding import TENSOR
from gemwright.typing import Array, Float, Int

VALUES_PER_PRODUCT = 1 << 24
"""Number of values that a product with a `PanelTensor` decodes at a time."""

THIN = 64
"""Largest number of columns of a thin matrix, such as a factor of a low-rank update."""


@runtime_checkable
class WeightLeaf(Protocol):
    """A pytree that represents an array of `shape`, of which products are computed in `dtype`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the represented array."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        ...

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x with those of the weight; the result is float32."""
        ...

    def rows(self, ids: Array) -> Array:
        """Return `self[ids]` along the first axis."""
        ...

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """Return the `count` largest products of each row of x with the first `limit` rows, float32, and their ids."""
        ...


Weight: TypeAlias = Array | WeightLeaf


def matmul(x: Array, weight: Weight, *, inputs: int = 1, out: DTypeLike | None = None) -> Array:
    """Apply a linear map: [*batch, *in] and a weight [*out, *in] give [*batch, *out].

    Args:
        x: Activations.
        weight: Any kind of weight.
        inputs: Number of the weight's last axes that are contracted.
        out: Dtype of the result, `x.dtype` by default. Products are accumulated in float32.
    """
    out = x.dtype if out is None else out
    if not isinstance(weight, Array):
        return weight.matmul(x, inputs).astype(out)
    batch, outputs = x.shape[: x.ndim - inputs], weight.shape[: weight.ndim - inputs]
    # Two plain matrices: with more axes XLA's CPU backend transposes the weight in every call.
    width, dtype = math.prod(x.shape[x.ndim - inputs :]), jnp.result_type(x, weight)
    product = _product(x.reshape(-1, width).astype(dtype), weight.reshape(-1, width).astype(dtype))
    return product.reshape(*batch, *outputs).astype(out)


@jax.custom_vjp
def _product(x: Float[Array, "N in"], weight: Float[Array, "out in"]) -> Float[Array, "N out"]:
    """Return x weight^T in float32; its gradient rounds the cotangent to the dtype of the operands, as PyTorch does.

    The products of JAX's own gradient have one float32 operand, for which XLA converts the whole weight.
    """
    return _dot(x, weight, 1, 1)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """Contract an axis of each of two matrices; the result is float32."""
    # Accelerators round float32 operands by default.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def _product_forward(x: Any, weight: Any) -> tuple[Array, tuple[Array | None, Array | None]]:
    """Return the product, and as residuals only what a gradient needs."""
    saved = x.value if weight.perturbed else None, weight.value if x.perturbed else None
    return _dot(x.value, weight.value, 1, 1), saved


def _product_backward(saved: tuple[Array | None, Array | None], dy: Array) -> tuple[Array | None, Array | None]:
    x, weight = saved
    dx = None if weight is None else _dot(dy.astype(weight.dtype), weight, 1, 0).astype(weight.dtype)
    return dx, None if x is None else _weight_gradient(x, dy.astype(x.dtype)).astype(x.dtype)


def _weight_gradient(x: Float[Array, "N in"], dy: Float[Array, "N out"]) -> Float[Array, "out in"]:
    if x.shape[1] > THIN:
        return _dot(dy, x, 0, 0)
    # XLA's CPU backend is four times faster with the narrow matrix first; the barrier keeps it there.
    return jax.lax.optimization_barrier(_dot(x, dy, 0, 0)).T


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def rows(table: Weight, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
    """Look up rows of a table [V, D]. Ids outside the table give NaN."""
    return jnp.take(table, ids, axis=0, mode="fill") if isinstance(table, Array) else table.rows(ids)


def to_matrix(weight: Weight, outputs: int) -> Float[Array, "outputs inputs"]:
    """Return the values of a weight as a matrix of `outputs` rows."""
    if isinstance(weight, Array):
        return weight.reshape(outputs, -1)
    assert isinstance(weight, PackedTensor | PanelTensor | DividedTensor)
    shape = (outputs, math.prod(weight.shape) // outputs)
    return dataclasses.replace(weight, shape=shape).rows(jnp.arange(outputs))


def top(
    x: Float[Array, "B D"], table: Weight, limit: int, count: int
) -> tuple[Float[Array, "B count"], Int[Array, "B count"]]:
    """Return the largest products of each row with the first `limit` rows of a table [V, D], and their ids.

    They are those of `matmul` in float32, in descending order, the lower id first if two are equal.
    """
    if not isinstance(table, Array):
        return table.top(x, limit, count)
    products = matmul(x, table, out=jnp.float32)
    return largest(jnp.where(jnp.arange(table.shape[0]) < limit, products, -jnp.inf), count)


def largest(x: Float[Array, "B V"], count: int) -> tuple[Float[Array, "B count"], Int[Array, "B count"]]:
    """Return the `count` largest entries of each row and their indices, in descending order; the first if equal."""
    found = jax.lax.top_k(x, count)
    if not jax.sharding.get_abstract_mesh().empty:  # XLA's CPU backend fails to divide the barrier
        return found[0], found[1]
    # Without the barrier, XLA's CPU backend sorts all of x if a slice of the result is taken.
    values, places = jax.lax.optimization_barrier(found)
    return values, places


@tree.node
class PackedTensor:
    """A weight in its stored format, a block format of GGUF or plain floats, repacked for the native kernels of CPUs.

    Attributes:
        packed: [bytes] uint8.
        encoding: The stored format, such as "Q4_K" or "BF16".
        shape: Shape of the represented array, outputs first.
        activation_bits: Bits to which activations are quantized: 8 or 16.
    """

    packed: Array
    encoding: str = tree.static()
    shape: tuple[int, ...] = tree.static()
    activation_bits: int = tree.static()

    @property
    def dtype(self) -> jnp.dtype:
        """Float32, for every encoding."""
        return jnp.dtype(jnp.float32)

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x. With a block format, x is quantized or rounded to bfloat16."""
        kernels = native.library()
        split = len(self.shape) - inputs
        width = math.prod(self.shape[split:])
        flat = x.reshape(-1, width).astype(jnp.float32)
        packed, outputs = require_cpu(self.packed), math.prod(self.shape[:split])
        y = kernels.matmul(flat, packed, self.encoding, outputs, activation_bits=self.activation_bits)
        return y.reshape(*x.shape[: x.ndim - inputs], *self.shape[:split])

    def rows(self, ids: Array) -> Array:
        """Decode rows; ids outside the table give NaN."""
        flat = ids.reshape(-1).astype(jnp.int32)
        kernels, width = native.library(), self.shape[-1]
        return kernels.rows(require_cpu(self.packed), flat, self.encoding, width).reshape(*ids.shape, width)

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """Return the `count` largest products of each row of x [B, in] with the first `limit` rows, and their ids."""
        flat = x.astype(jnp.float32)
        return native.library().top(flat, require_cpu(self.packed), self.encoding, self.shape[0], limit, count)

    @classmethod
    def to_device(cls, repacked: Repacked, shape: tuple[int, ...], *, activation_bits: int) -> "PackedTensor":
        """Copy a repacked weight to the device."""
        return cls(jax.device_put(repacked.packed), repacked.layout, shape, activation_bits)


@tree.node
class LoraTensor:
    """A weight W with low-rank updates, `gain * W + b a` (arXiv:2106.09685; the gain is DoRA's, arXiv:2402.09353).

    Attributes:
        base: W [*out, *in], any kind of weight.
        a: [rank, in].
        b: [out, rank], with the scale of the update.
        gain: [out]; None for one.
    """

    base: Weight
    a: Array
    b: Array
    gain: Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the represented array."""
        return self.base.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        return self.base.dtype

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x; the result is float32."""
        y = matmul(x, self.base, inputs=inputs, out=jnp.float32)
        if self.gain is not None:
            y *= self.gain.reshape(self.shape[:-inputs])
        inner = matmul(x.reshape(*x.shape[: x.ndim - inputs], -1), self.a, out=jnp.float32)
        update = matmul(inner.astype(self.b.dtype), self.b, out=jnp.float32)
        return y + update.reshape(y.shape)

    def rows(self, ids: Array) -> Array:
        """Return `self[ids]` of a table [V, D]; ids outside the table give NaN."""
        found = rows(self.base, ids)
        y = found if self.gain is None else found * rows(self.gain[:, None], ids)
        return (y + rows(self.b, ids).astype(jnp.float32) @ self.a.astype(jnp.float32)).astype(found.dtype)

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """Return the `count` largest products of each row of x [B, in] with the first `limit` rows, and their ids."""
        products = self.matmul(x, 1)
        return largest(jnp.where(jnp.arange(self.shape[0]) < limit, products, -jnp.inf), count)


@tree.node
class PanelTensor:
    """A quantized weight that XLA decodes in each product, some panels at a time, on any platform.

    Attributes:
        packed: [bytes] uint8, from `kernels.panels.pack`.
        encoding: A key of `kernels.panels.BITS`.
        shape: Shape of the represented array, outputs first.
        dtype: Dtype of activations and of decoded values.
    """

    packed: Array
    encoding: str = tree.static()
    shape: tuple[int, ...] = tree.static()
    dtype: jnp.dtype = tree.static()

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x; the result is float32."""
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
        # Rows missing in the last panel decode to NaN, which a gradient would spread.
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
        """Return the `count` largest products of each row of x [B, in] with the first `limit` rows, and their ids."""
        products = self.matmul(x, 1)
        return largest(jnp.where(jnp.arange(self.shape[0]) < limit, products, -jnp.inf), count)

    def _panels(self, width: int) -> Array:
        return self.packed.reshape(-1, width // panels.GROUP * panels.block_bytes(self.encoding))


@tree.node
class DividedTensor:
    """A packed weight of which each device on the axis `tensor` of a mesh has some rows, and multiplies those.

    No sum is divided, so products are those of the whole weight. The rows are divided by panels, the last of which are
    padding, so that any number of rows can be divided.

    Attributes:
        part: A part, of shape (rows, width); its bytes are those of all parts, [parts, bytes].
        shape: Shape of the represented array, outputs first.
        mesh: The mesh; its other axes have copies.
    """

    part: PackedTensor | PanelTensor
    shape: tuple[int, ...] = tree.static()
    mesh: Mesh = tree.static()

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        return self.part.dtype

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x; the result is float32."""
        outputs = self.shape[:-inputs]
        flat = x.reshape(-1, self.part.shape[1])

        def product(packed: Array, flat: Array) -> Array:
            return self._own(packed).matmul(flat, 1)

        y = self._map(product, P(None, TENSOR))(self.part.packed, flat)[:, : math.prod(outputs)]
        return y.reshape(*x.shape[: x.ndim - inputs], *outputs)

    def rows(self, ids: Array) -> Array:
        """Decode rows; ids outside the table give NaN."""
        flat = ids.reshape(-1)

        def look_up(packed: Array, flat: Array) -> Array:
            own, count = self._own(packed), self.part.shape[0]
            row = flat - jax.lax.axis_index(TENSOR) * count
            has = (row >= 0) & (row < count)
            found = own.rows(jnp.where(has, row, 0))
            return jax.lax.psum(jnp.where(has[:, None], found, 0), TENSOR)

        found = self._map(look_up, P())(self.part.packed, flat)
        known = (flat >= 0) & (flat < self.shape[0])
        return jnp.where(known[:, None], found, jnp.nan).reshape(*ids.shape, -1)

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """Return the `count` largest products of each row of x [B, in] with the first `limit` rows, and their ids."""
        products = self.matmul(x, 1)
        return largest(jnp.where(jnp.arange(self.shape[0]) < limit, products, -jnp.inf), count)

    def _own(self, packed: Array) -> PackedTensor | PanelTensor:
        """Return a device's part, from its bytes [1, bytes]."""
        return dataclasses.replace(self.part, packed=packed.reshape(-1))

    def _map(self, function: Callable[..., Array], out: P) -> Callable[..., Array]:
        """Return a function that runs on each device with its bytes and all of the other argument."""
        return jax.jit(
            jax.shard_map(
                function, mesh=self.mesh, in_specs=(P(TENSOR), P()), out_specs=out, axis_names={TENSOR}, check_vma=False
            )
        )

    @classmethod
    def to_devices(cls, whole: PackedTensor | PanelTensor, rows: int, mesh: Mesh) -> "DividedTensor":
        """Copy a packed weight to the devices that have parts of it.

        Args:
            whole: The weight, its bytes in numpy.
            rows: The number of its rows.
            mesh: The mesh.
        """
        packed: Any = whole.packed
        parts, count = mesh.shape[TENSOR], -(-rows // panels.LANES)
        each = -(-count // parts)  # panels of a part
        size = len(packed) // count * each

        def part(index: Any) -> NDArray[np.uint8]:
            start = index[0].start or 0
            found = packed[start * size : (start + 1) * size]
            # A CPU device may keep the memory that it is given: a copy lets go of the rest.
            return np.pad(found, (0, size - len(found)))[None]

        bytes_ = jax.make_array_from_callback((parts, size), NamedSharding(mesh, P(TENSOR)), part)
        shape = (each * panels.LANES, math.prod(whole.shape) // rows)
        return cls(dataclasses.replace(whole, packed=bytes_, shape=shape), whole.shape, mesh)
