"""Attention among the tokens of one call, without a cache: for training and scoring.

The reference is jax.numpy, some queries at a time. On a TPU it is a flash kernel. Neither holds a full array of scores,
not even for the gradient: both have a backward pass of their own. In a mesh every device computes its own sequences,
queries and heads.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gemwright import sharding
from gemwright.kernels import choice, splash
from gemwright.kernels.attention import Gains, attend_at_once, map_queries, prepare, same_group, visible
from gemwright.typing import Array, Float, Int

NAME = "attention without a cache"
DTYPES = (jnp.float32, jnp.bfloat16)
"""Dtypes that the kernel supports."""


def attend_uncached(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    positions: Int[Array, "B T"],
    rotation: Float[Array, "B T 2 half"],
    gains: Gains | None,
    segments: Int[Array, "B T"] | None = None,
    groups: Int[Array, "B T"] | None = None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    eps: float,
) -> Float[Array, "B T N H"]:
    """Normalize and rotate queries and keys, and attend among the tokens of one call.

    Args:
        q: Queries, as projected.
        k: Keys, as projected.
        v: Values.
        positions: -1 for padding; those of a document are consecutive, without padding between them.
        rotation: See `ops.rotation`.
        gains: None for no norms.
        segments: The document of each token, not negative; tokens attend within their document.
        groups: Tokens of one group attend to each other both ways; -1 for causal tokens.
        window: Positions that a query attends to, itself included; None for all earlier ones.
        scale: Factor of the scores.
        cap: Soft cap of the scores.
        eps: Epsilon of the norms.

    Raises:
        GemwrightError: The kernel is requested and cannot run.
    """
    q, k = prepare(q, k, rotation, gains, eps)
    q *= scale
    # Padding attends to padding, so that no query attends to nothing.
    segments = jnp.where(positions < 0, -1, 0 if segments is None else segments)
    layout = _lay_out(q, k)
    impl = choice.resolve_pallas(NAME, _obstacle(q, groups, layout))
    if impl == "reference":
        return _mix(q, k, v, positions, positions, segments, segments, groups, window=window, cap=cap)
    if k.shape[2] % layout.head_parts:  # every part of the heads has a copy of its keys
        k, v = (jnp.repeat(x, layout.head_parts // k.shape[2], axis=2) for x in (k, v))
    return _attend(q, k, v, positions, segments, _Options(window, cap, impl, layout))


@dataclass(frozen=True)
class _Layout:
    """How a mesh divides attention.

    Attributes:
        queries: Axes of the mesh that divide each axis of the queries [B, T, N, H].
        sizes: Sizes of the axes of the mesh; empty without one.
    """

    queries: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[str, int], ...]

    def parts(self, axis: int) -> int:
        """Return the number of parts of an axis of the queries."""
        sizes = dict(self.sizes)
        return math.prod(sizes[name] for name in self.queries[axis])

    @property
    def head_parts(self) -> int:
        """Number of parts of the heads."""
        return self.parts(2)

    def spec(self, *axes: int | None) -> PartitionSpec:
        """Return how an array is divided whose axes are these of the queries; None for one that is not."""
        return PartitionSpec(*(None if axis is None else self.queries[axis] or None for axis in axes))


@dataclass(frozen=True)
class _Options:
    window: int | None
    cap: float | None
    impl: choice.Impl
    layout: _Layout


def _lay_out(q: Array, k: Array) -> _Layout:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _Layout(((),) * 4, ())
    found = sharding.divide(("batch", "length", "heads", None), q.shape, mesh.shape)
    batch, length, heads, width = ((names,) if isinstance(names, str) else names or () for names in found)
    layout = _Layout((batch, length, heads, width), tuple(mesh.shape.items()))
    if k.shape[2] % layout.head_parts and layout.head_parts % k.shape[2]:
        heads = ()
    if q.shape[1] % (layout.parts(1) * splash.LANES):
        length = ()
    return _Layout((batch, length, heads, width), layout.sizes)


def _obstacle(q: Array, groups: Array | None, layout: _Layout) -> str | None:
    """Return the reason why the kernel does not take these inputs, or None."""
    if groups is not None:
        return "soft tokens attend to each other both ways"
    if q.dtype not in DTYPES:
        return f"queries are {q.dtype}, not float32 or bfloat16"
    if q.shape[-1] % splash.LANES:
        return f"the head width {q.shape[-1]} is not a multiple of {splash.LANES}"
    length = q.shape[1] // layout.parts(1)
    if length % splash.LANES:
        return f"the length {length} is not a multiple of {splash.LANES}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, positions: Array, segments: Array, options: _Options) -> Array:
    return _attend_forward(q, k, v, positions, segments, options)[0]


def _attend_forward(
    q: Array, k: Array, v: Array, positions: Array, segments: Array, options: _Options
) -> tuple[Array, tuple[Array, ...]]:
    layout = options.layout

    def run(*arrays: Array) -> tuple[Array, ...]:
        return _forward(*arrays, _part(layout), impl=options.impl, window=options.window, cap=options.cap)

    arrays = (q, k, v, positions, positions, segments, segments)
    mixed, sums = _run_divided(run, layout, _specs(layout), (layout.spec(0, 1, 2, 3), layout.spec(0, 2, 1)))(*arrays)
    return mixed, (q, k, v, positions, segments, mixed, sums)


def _attend_backward(options: _Options, residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array | None, ...]:
    q, k, v, positions, segments, mixed, sums = residuals
    layout = options.layout

    def run(*arrays: Array) -> tuple[Array, ...]:
        *arguments, mixed, sums, cotangent = arrays
        arguments = (*arguments, _part(layout), mixed, sums, cotangent)
        dq, dk, dv = _backward(*arguments, impl=options.impl, window=options.window, cap=options.cap)
        if layout.queries[1]:  # a key's gradient is the sum over all parts of the queries
            dk, dv = jax.lax.psum((dk, dv), layout.queries[1])
        return dq, dk, dv

    queries, specs = layout.spec(0, 1, 2, 3), _specs(layout)
    divided = _run_divided(run, layout, (*specs, queries, layout.spec(0, 2, 1), queries), specs[:3])
    gradients = divided(q, k, v, positions, positions, segments, segments, mixed, sums, cotangent)
    return *gradients, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _specs(layout: _Layout) -> tuple[PartitionSpec, ...]:
    """Return how queries, keys, values, and the positions and segments of queries and keys are divided."""
    keys, of_queries, of_keys = layout.spec(0, None, 2, 3), layout.spec(0, 1), layout.spec(0, None)
    return layout.spec(0, 1, 2, 3), keys, keys, of_queries, of_keys, of_queries, of_keys


def _run_divided(
    function: Callable[..., tuple[Array, ...]], layout: _Layout, given: tuple[Any, ...], results: tuple[Any, ...]
) -> Callable[..., tuple[Array, ...]]:
    """Return the function, run by every device of the mesh on its own parts."""
    if not layout.sizes:
        return function
    return jax.shard_map(function, in_specs=given, out_specs=results, check_vma=False)


def _part(layout: _Layout) -> Array:
    """Return the number of the part of the length that this device has."""
    names = layout.queries[1]
    return jax.lax.axis_index(names) if names else jnp.int32(0)


def _mix(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    q_positions: Int[Array, "B T"],
    k_positions: Int[Array, "B S"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
    groups: Int[Array, "B T"] | None = None,
    *,
    window: int | None,
    cap: float | None,
) -> Float[Array, "B T N H"]:
    """Attend by positions, segments and groups, some queries at a time."""
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)

    def some(q: Array, positions: Array, segments: Array, *group: Array) -> Array:
        mask = visible(positions, k_positions, window)
        mask &= segments[:, :, None] == k_segments[:, None, :]
        if groups is not None:
            mask |= same_group(group[0], groups)
        return attend_at_once(q, keys, values, mask, cap)

    arrays = (q, q_positions, q_segments, *(() if groups is None else (groups,)))
    return map_queries(some, arrays, q.shape[0] * q.shape[2] * keys.shape[2])


def _forward_reference(
    q: Array, k: Array, v: Array, *where: Array, window: int | None, cap: float | None
) -> tuple[Array, Array]:
    """Return the mixed values, and zeros: the gradient computes the scores again."""
    B, T, N, _ = q.shape
    return _mix(q, k, v, *where[:4], window=window, cap=cap), jnp.zeros((B, N, T), jnp.float32)


def _backward_reference(
    q: Array, k: Array, v: Array, *rest: Array, window: int | None, cap: float | None
) -> tuple[Array, ...]:
    *where, _part, _mixed, _sums, cotangent = rest

    def mix(q: Array, k: Array, v: Array) -> Array:
        return _mix(q, k, v, *where, window=window, cap=cap)

    return jax.vjp(mix, q, k, v)[1](cotangent)


def _forward_tpu(q: Array, k: Array, v: Array, *rest: Array, **options: Any) -> tuple[Array, Array]:
    return splash.forward(q, k, v, *rest[2:], **options)  # by index: it needs no positions


def _backward_tpu(q: Array, k: Array, v: Array, *rest: Array, **options: Any) -> tuple[Array, ...]:
    return splash.backward(q, k, v, *rest[2:], **options)


_forward = choice.PlatformOperation(NAME, reference=_forward_reference, tpu=_forward_tpu, like=None)
_backward = choice.PlatformOperation(
    f"the gradient of {NAME}", reference=_backward_reference, tpu=_backward_tpu, like=(0, 1, 2)
)
