"""The linear recurrence over time, the one part of a recurrent layer that is no matrix product."""

import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from gemwright.kernels import choice
from gemwright.typing import Array, Float

Impl: TypeAlias = Literal["auto", "associative", "sequential"]


def linear_recurrence(
    a: Float[Array, "B T R"], b: Float[Array, "B T R"], initial: Float[Array, "B R"], impl: Impl = "auto"
) -> Float[Array, "B T R"]:
    """Return h_t = a_t h_{t-1} + b_t for all t, where h before the first step is `initial`; in float32.

    Args:
        a: Factor of each channel at each step.
        b: Sum of each channel at each step.
        initial: The state before the first step.
        impl: "associative" takes log T steps of wide work, which suits accelerators, and "sequential" T narrow ones,
            which read memory once. "auto" is sequential in programs for a CPU.
    """
    if a.shape[1] == 1:
        return a * initial[:, None] + b
    return _recurrence(impl, a, b, initial)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(impl: Impl, a: Array, b: Array, initial: Array) -> Array:
    return _RUN[impl](a, b, initial, reverse=False)[0]


def _forward(impl: Impl, a: Array, b: Array, initial: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    h = _RUN[impl](a, b, initial, reverse=False)[0]
    return h, (a, h, initial)


def _backward(impl: Impl, saved: tuple[Array, Array, Array], h_bar: Array) -> tuple[Array, Array, Array]:
    """Return the gradient, the same recurrence in reverse: b'_t = h'_t + a_{t+1} b'_{t+1}."""
    a, h, initial = saved
    following = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    b_bar = _RUN[impl](following, h_bar, jnp.zeros_like(initial), reverse=True)[0]
    previous = jnp.concatenate([initial[:, None], h[:, :-1]], axis=1)
    return b_bar * previous, b_bar, a[:, 0] * b_bar[:, 0]


_recurrence.defvjp(_forward, _backward)


def _associative(a: Array, b: Array, initial: Array, *, reverse: bool) -> tuple[Array]:
    first = -1 if reverse else 0
    b = b.at[:, first].add(a[:, first] * initial)

    def join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    return (jax.lax.associative_scan(join, (a, b), reverse=reverse, axis=1)[1],)


def _sequential(a: Array, b: Array, initial: Array, *, reverse: bool) -> tuple[Array]:
    def step(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        h = at[0] * h + at[1]
        return h, h

    time_first = (a.swapaxes(0, 1), b.swapaxes(0, 1))
    return (jax.lax.scan(step, initial, time_first, reverse=reverse)[1].swapaxes(0, 1),)


_RUN = {
    "auto": choice.PlatformOperation("linear recurrence", reference=_associative, cpu=_sequential, like=(0,)),
    "associative": _associative,
    "sequential": _sequential,
}
