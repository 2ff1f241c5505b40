"""Weights at their own bits, multiplied by the C++ kernels of gemwright-native without being blown up.

Where the package is not installed, or the device is no CPU, weights are plain arrays and XLA multiplies them.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gemwright import tree
from gemwright.errors import GemwrightError
from gemwright.kernels import packing
from gemwright.kernels.packing import Arranged
from gemwright.typing import Array


@tree.node
class QTensor:
    """A weight in a block format of GGUF or in plain floats, rearranged for the kernels; it stands for float32.

    Attributes:
        packed: [bytes] uint8.
        encoding: Of the values, such as "Q4_K" or "BF16".
        shape: Of the array that it stands for, outputs first.
        precise: Activations meet it in 16 bits, not in 8.
    """

    packed: Array
    encoding: str = tree.static()
    shape: tuple[int, ...] = tree.static()
    precise: bool = tree.static()

    @property
    def dtype(self) -> jnp.dtype:
        """Activations are float32 whatever the bits of the weight."""
        return jnp.dtype(jnp.float32)

    def matmul(self, x: Array, inputs: int) -> Array:
        """Contract the last `inputs` axes of x; block formats meet activations of 8 or 16 bits, or bfloat16."""
        native = packing.native()
        split = len(self.shape) - inputs
        width = math.prod(self.shape[split:])
        flat = x.reshape(-1, width).astype(jnp.float32)
        y = native.matmul(
            flat, self.packed, self.encoding, math.prod(self.shape[:split]), activation_bits=16 if self.precise else 8
        )
        return y.reshape(*x.shape[: x.ndim - inputs], *self.shape[:split])

    def rows(self, ids: Array) -> Array:
        """Decode rows; ids outside the table give NaN."""
        flat = ids.reshape(-1).astype(jnp.int32)
        native, width = packing.native(), self.shape[-1]
        return native.rows(self.packed, flat, self.encoding, width).reshape(*ids.shape, width)

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """The `count` largest products of each row of x [B, in] with the first `limit` rows, and which they are."""
        flat = x.astype(jnp.float32)
        return packing.native().top(flat, self.packed, self.encoding, self.shape[0], limit, count)


def use_native() -> bool:
    """Whether weights are kept at their own bits: on a CPU, with gemwright-native installed.

    Raises:
        GemwrightError: GEMWRIGHT_NATIVE_ISA names an instruction set that this machine lacks.
    """
    if jax.default_backend() != "cpu" or not packing.installed():
        return False
    try:
        return bool(packing.native().isa())
    except ValueError as error:
        raise GemwrightError(str(error)) from error


def run_together(x: Array, maps: Sequence[object]) -> bool:
    """Whether `products` takes these: float32 activations and weights at their own bits."""
    return x.dtype == jnp.float32 and all(isinstance(weight, QTensor) for weight in maps)


def products(
    x: Array,
    maps: Sequence[Any],
    *,
    gain: Array | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    post_gain: Array | None = None,
    eps: float,
) -> tuple[Array, ...]:
    """Linear maps of one input [B, T, *in] with what stands around them; see `gemwright_native.fused_linear`."""

    def matrix(array: Array | None) -> Array | None:
        return None if array is None else array.astype(jnp.float32).reshape(-1, math.prod(array.shape[2:]))

    def row(array: Array | None) -> Array | None:
        return None if array is None else array.astype(jnp.float32)

    inputs = x.ndim - 2
    results = packing.native().fused_linear(
        matrix(x),
        [(weight.packed, weight.encoding, math.prod(weight.shape[:-inputs])) for weight in maps],
        gain=row(gain),
        gate=matrix(gate),
        residual=matrix(residual),
        post_gain=row(post_gain),
        eps=eps,
        activation_bits=16 if any(weight.precise for weight in maps) else 8,
    )
    return tuple(y.reshape(*x.shape[:2], *weight.shape[:-inputs]) for y, weight in zip(results, maps, strict=True))


def held(arranged: Arranged, shape: tuple[int, ...], *, precise: bool) -> QTensor:
    """What was rearranged, on the device."""
    return QTensor(jax.device_put(arranged.packed), arranged.layout, shape, precise)


def instruction_set() -> str:
    """The instruction set that the kernels use here."""
    return packing.native().isa()


def encodings() -> tuple[str, ...]:
    """The encodings that have kernels."""
    return packing.native().ENCODINGS
