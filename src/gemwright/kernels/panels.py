"""Q8_0 and Q4_0 weights in the layout of gemwright-native's kernels, for numpy and for XLA on any device.

A weight [rows, width] is cut into panels of 16 rows, the last one filled up, and a panel into blocks that advance along
its width. A block holds 16 scales d (float16), one a row, then 32 numbers q of each row, in 8 steps of 4: a step has
four numbers of row 0, then of row 1, and so on. Q8_0 has signed bytes and stands for d * q. Q4_0 stands for d * (q - 8)
and has steps 0-3 in the low halves of its bytes and 4-7 in the high ones. Source: native/src/format.h.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.typing import Array

LANES = 16
"""Rows of a panel."""
GROUP = 32
"""Values of a row that share a scale."""
BITS = {"Q8_0": 8, "Q4_0": 4}
CHUNK = 1 << 24
"""Values that a product decodes at a time."""


def packed_bytes(encoding: str, rows: int, width: int) -> int:
    """Bytes of a weight; `width` is a multiple of `GROUP`."""
    return -(-rows // LANES) * (width // GROUP) * _block_bytes(encoding)


def pack(encoding: str, scales: NDArray[np.float16], numbers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Arrange a weight in panels; the rows that the last one lacks have NaN for a scale.

    Args:
        encoding: A key of `BITS`.
        scales: [rows, groups].
        numbers: [rows, groups, 32], what the scales are multiplied by.

    Returns:
        The bytes, as gemwright-native's own packing of the same weight has them.
    """
    rows, groups, _ = numbers.shape
    panels, missing = -(-rows // LANES), -rows % LANES
    scales = np.pad(scales, ((0, missing), (0, 0)), constant_values=np.float16("nan"))
    stored = numbers.view(np.uint8) if encoding == "Q8_0" else (numbers + np.int8(8)).view(np.uint8)
    stored = np.pad(stored, ((0, missing), (0, 0), (0, 0))).reshape(panels, LANES, groups, 8, 4)
    stored = stored.transpose(0, 2, 3, 1, 4)
    if encoding == "Q4_0":
        stored = stored[:, :, :4] | stored[:, :, 4:] << 4
    blocks = np.empty((panels, groups, _block_bytes(encoding)), np.uint8)
    blocks[:, :, : 2 * LANES].view(np.float16)[...] = scales.reshape(panels, LANES, groups).swapaxes(1, 2)
    blocks[:, :, 2 * LANES :] = stored.reshape(panels, groups, -1)
    return blocks.reshape(-1)


def decode(packed: Any, encoding: str, width: int) -> Any:
    """The exact values of whole panels, [16 * panels, width] float32, as an array of numpy or JAX, like `packed`."""
    blocks = packed.reshape(-1, width // GROUP, _block_bytes(encoding))
    return _values(*_split(blocks), encoding).reshape(-1, width)


@tree.node
class PanelTensor:
    """A packed weight that XLA decodes where it is used, some panels at a time.

    Attributes:
        packed: [bytes] uint8, as `pack` makes them.
        encoding: A key of `BITS`.
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

        def product(part: tuple[Array, Array]) -> Array:
            panel, real = part
            weight = jnp.where(real[:, None], decode(panel, self.encoding, width), 0).astype(self.dtype)
            return jax.lax.dot_general(
                flat, weight, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
            )

        panels, count = self._panels(width), math.prod(outputs)
        at_once = max(1, min(CHUNK // (LANES * width), len(panels)))
        # The NaN of rows that the last panel lacks would come through in a gradient.
        real = jnp.arange(len(panels) * LANES).reshape(-1, LANES) < count
        y = jax.lax.map(product, (panels, real), batch_size=at_once)  # [panels, batch, lanes]
        y = y.swapaxes(0, 1).reshape(len(flat), -1)[:, :count]
        return y.reshape(*x.shape[: x.ndim - inputs], *outputs)

    def rows(self, ids: Array) -> Array:
        """Decode rows; ids outside the table give NaN."""
        count, width = self.shape
        flat = ids.reshape(-1)
        known = (flat >= 0) & (flat < count)
        row = jnp.where(known, flat, 0)
        scales, stored = _split(self._panels(width)[row // LANES].reshape(len(flat), width // GROUP, -1))
        lane = (row % LANES)[:, None, None]
        scales = jnp.take_along_axis(scales, lane, axis=2)
        stored = jnp.take_along_axis(stored, lane[..., None, None], axis=3)
        values = _values(scales, stored, self.encoding).reshape(len(flat), width).astype(self.dtype)
        return jnp.where(known[:, None], values, jnp.nan).reshape(*ids.shape, width)

    def top(self, x: Array, limit: int, count: int) -> tuple[Array, Array]:
        """The `count` largest products of each row of x [B, in] with the first `limit` rows, and which they are."""
        products = self.matmul(x, 1)
        known = jnp.where(jnp.arange(self.shape[0]) < limit, products, -jnp.inf)
        # Behind a barrier: XLA's CPU backend would sort all of it for whoever takes a slice of the result.
        values, places = jax.lax.optimization_barrier(jax.lax.top_k(known, count))
        return values, places

    def _panels(self, width: int) -> Array:
        return self.packed.reshape(-1, width // GROUP * _block_bytes(self.encoding))


def _block_bytes(encoding: str) -> int:
    return 2 * LANES + LANES * GROUP * BITS[encoding] // 8


def _split(blocks: Any) -> tuple[Any, Any]:
    """Scales [panels, groups, 16] and the bytes of numbers [panels, groups, steps, 16, 4] of blocks."""
    scales = blocks[..., : 2 * LANES].view(np.float16)
    return scales, blocks[..., 2 * LANES :].reshape(*blocks.shape[:2], -1, LANES, 4)


def _values(scales: Any, stored: Any, encoding: str) -> Any:
    """[panels, rows, groups, 8, 4] of scales [panels, groups, rows] and bytes [panels, groups, steps, rows, 4]."""
    if encoding == "Q8_0":
        numbers = stored.view(np.int8)
    else:
        both = stored.__array_namespace__().concat([stored & 15, stored >> 4], axis=2)
        numbers = both.view(np.int8) - np.int8(8)
    values = numbers.astype(np.float32) * scales.astype(np.float32)[:, :, None, :, None]
    return values.transpose(0, 3, 1, 2, 4)
