"""The decoder around its layers."""

from typing import Any

import jax.numpy as jnp
import pytest

from gemwright.model import block
from gemwright.model.state import DecodeState, empty_state
from gemwright.model.transformer import forward
from tests.tiny.config import CONFIGS, make_weights


def test_states_stay_with_their_layers_if_one_has_none(monkeypatch: pytest.MonkeyPatch):
    """A layer without a state takes and returns None; here it does nothing else."""
    config, apply = CONFIGS["capped"], block.apply

    def skip(layer: Any, params: Any, x: Any, positions: Any, state: Any, eps: float) -> Any:
        return (x, None) if state is None else apply(layer, params, x, positions, state, eps)

    monkeypatch.setattr(block, "apply", skip)
    full = empty_state(config, 1, 16, jnp.float32)
    state: Any = DecodeState(full.lengths, (None, full.layers[1]))  # type: ignore[arg-type]
    for _ in range(2):
        _, state = forward(config, make_weights(config), jnp.ones((1, 1), jnp.int32), state)
    assert state.layers[0] is None
    assert state.layers[1].cells == full.layers[1].cells == 16
    assert state.lengths.tolist() == [2]
