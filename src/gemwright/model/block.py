"""One residual layer."""

import functools

import jax

from gemwright.model import attention, mlp, recurrent
from gemwright.model.branch import Branch
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
    x, state = _mix(layer, params, Branch(params.mixer_norm, params.mixer_post_norm, eps), x, context, state)
    return mlp.apply(params.mlp, Branch(params.mlp_norm, params.mlp_post_norm, eps), x), state


def _mix(
    layer: Layer,
    params: LayerWeights,
    branch: Branch,
    x: Float[Array, "B T D"],
    context: Context,
    state: MixerState | None,
) -> tuple[Float[Array, "B T D"], MixerState | None]:
    if isinstance(layer.mixer, Recurrent):
        assert isinstance(params.mixer, RecurrentWeights)
        assert state is None or isinstance(state, RecurrentState)
        return recurrent.apply(layer.mixer, params.mixer, branch, x, context, state)
    assert not isinstance(params.mixer, RecurrentWeights)
    assert not isinstance(state, RecurrentState)
    return attention.apply(layer.mixer, params.mixer, branch, x, context, state)
