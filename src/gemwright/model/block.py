"""One residual layer."""

import functools

import jax

from gemwright import ops
from gemwright.model import attention, mlp, recurrent
from gemwright.model.config import Layer, Recurrent
from gemwright.model.spec import LayerWeights, RecurrentWeights
from gemwright.model.state import Context, MixerState, RecurrentState
from gemwright.typing import Array, Float


# Compiled by itself so that a model of many layers is traced once per kind of layer, not once per layer.
@functools.partial(jax.jit, static_argnames=("layer", "eps"))
def apply(
    layer: Layer,
    params: LayerWeights,
    x: Float[Array, "B T D"],
    context: Context,
    state: MixerState | None,
    eps: float,
) -> tuple[Float[Array, "B T D"], MixerState | None]:
    """Add mixer(norm(x)), then mlp(norm(x)), each result normalised again where the layer has post norms."""
    mixed, state = _mix(layer, params, ops.rms_norm(x, params.mixer_norm, eps), context, state, eps)
    x += _post_norm(mixed, params.mixer_post_norm, eps)
    hidden = mlp.apply(params.mlp, ops.rms_norm(x, params.mlp_norm, eps))
    return x + _post_norm(hidden, params.mlp_post_norm, eps), state


def _mix(
    layer: Layer,
    params: LayerWeights,
    x: Float[Array, "B T D"],
    context: Context,
    state: MixerState | None,
    eps: float,
) -> tuple[Float[Array, "B T D"], MixerState | None]:
    if isinstance(layer.mixer, Recurrent):
        assert isinstance(params.mixer, RecurrentWeights)
        assert state is None or isinstance(state, RecurrentState)
        return recurrent.apply(layer.mixer, params.mixer, x, context, state)
    assert not isinstance(params.mixer, RecurrentWeights)
    assert not isinstance(state, RecurrentState)
    return attention.apply(layer.mixer, params.mixer, x, context, state, eps)


def _post_norm(x: Float[Array, "B T D"], gain: Array | None, eps: float) -> Float[Array, "B T D"]:
    return x if gain is None else ops.rms_norm(x, gain, eps)
