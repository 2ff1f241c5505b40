"""The linear recurrence over time, the one part of a recurrent layer that is no matrix product."""

import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from gemwright.typing import Array, Float

Impl: TypeAlias = Literal["auto", "associative", "sequential"]


def linear_recurrence(
    a: Float[Array, "B T R"], b: Float[Array, "B T R"], initial: Float[Array, "B R"], impl: Impl = "auto"
) -> Float[Array, "B T R"]:
    """h_t = a_t h_{t-1} + b_t for all t, where h before the first step is `initial`; everything in float32.

    Args:
        a: what each channel keeps at each step.
        b: what is added.
        initial: the state before the first step.
        impl: "associative" takes log T steps of wide work, which accelerators are made for, "sequential" T narrow ones,
            which touch memory once. "auto" chooses by the default backend.
    """
    if a.shape[1] == 1:
        return a * initial[:, None] + b
    if impl == "auto":
        impl = "sequential" if jax.default_backend() == "cpu" else "associative"
    return _recurrence(impl, a, b, initial)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(impl: Impl, a: Array, b: Array, initial: Array) -> Array:
    return _run(impl, a, b, initial, reverse=False)


def _forward(impl: Impl, a: Array, b: Array, initial: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    h = _run(impl, a, b, initial, reverse=False)
    return h, (a, h, initial)


def _backward(impl: Impl, saved: tuple[Array, Array, Array], h_bar: Array) -> tuple[Array, Array, Array]:
    """The gradient is the same recurrence backwards: b'_t = h'_t + a_{t+1} b'_{t+1}."""
    a, h, initial = saved
    following = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    b_bar = _run(impl, following, h_bar, jnp.zeros_like(initial), reverse=True)
    previous = jnp.concatenate([initial[:, None], h[:, :-1]], axis=1)
    return b_bar * previous, b_bar, a[:, 0] * b_bar[:, 0]


_recurrence.defvjp(_forward, _backward)


def _run(impl: Impl, a: Array, b: Array, initial: Array, *, reverse: bool) -> Array:
    return (_associative if impl == "associative" else _sequential)(a, b, initial, reverse)


def _associative(a: Array, b: Array, initial: Array, reverse: bool) -> Array:
    first = -1 if reverse else 0
    b = b.at[:, first].add(a[:, first] * initial)

    def join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    return jax.lax.associative_scan(join, (a, b), reverse=reverse, axis=1)[1]


def _sequential(a: Array, b: Array, initial: Array, reverse: bool) -> Array:
    def step(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        h = at[0] * h + at[1]
        return h, h

    time_first = (a.swapaxes(0, 1), b.swapaxes(0, 1))
    return jax.lax.scan(step, initial, time_first, reverse=reverse)[1].swapaxes(0, 1)
