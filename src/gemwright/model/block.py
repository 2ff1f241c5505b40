"""One residual layer."""

import functools

import jax

from gemwright.linear import Norms
from gemwright.model import attention, mlp, recurrent
from gemwright.model.config import Layer, Recurrent
from gemwright.model.params import LayerWeights, RecurrentWeights
from gemwright.model.state import MixerState, Positions, RecurrentState
from gemwright.typing import Array, Float


# A jitted function, so that tracing takes one pass per kind of layer, not per layer.
@functools.partial(jax.jit, static_argnames=("layer", "eps"))
def apply(
    layer: Layer,
    params: LayerWeights,
    x: Float[Array, "B T D"],
    positions: Positions,
    state: MixerState | None,
    eps: float,
) -> tuple[Float[Array, "B T D"], MixerState | None]:
    """Add mixer(norm(x)), then mlp(norm(x)), each followed by a norm if the layer has post norms."""
    x, state = _mix(layer, params, Norms(params.mixer_norm, params.mixer_post_norm, eps), x, positions, state)
    return mlp.apply(params.mlp, Norms(params.mlp_norm, params.mlp_post_norm, eps), x), state


def _mix(
    layer: Layer,
    params: LayerWeights,
    norms: Norms,
    x: Float[Array, "B T D"],
    positions: Positions,
    state: MixerState | None,
) -> tuple[Float[Array, "B T D"], MixerState | None]:
    if isinstance(layer.mixer, Recurrent):
        assert isinstance(params.mixer, RecurrentWeights)
        assert state is None or isinstance(state, RecurrentState)
        return recurrent.apply(layer.mixer, params.mixer, norms, x, positions, state)
    assert not isinstance(params.mixer, RecurrentWeights)
    assert not isinstance(state, RecurrentState)
    return attention.apply(layer.mixer, params.mixer, norms, x, positions, state)
