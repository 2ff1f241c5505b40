"""The step that is exported, run by JAX, against the decoder of `gemwright.model`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright import tree
from gemwright.model.config import Config, Layer, Mlp, Recurrent
from gemwright.model.params import ModelWeights, param_specs
from gemwright.model.transformer import forward, logits
from gemwright.release.litert.program import MASKED, Signature, signatures
from gemwright.release.litert.recipes import matrix_shape
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONTEXT, PROMPT, LENGTH = 24, 9, 20
LOGITS = 1e-4
"""Absolute tolerance of float32 logits, which are of the order of 1 here."""
CONFIG = Config(
    32,
    VOCAB,
    (
        CONFIGS["capped"].layers[0],
        CONFIGS["qk-norm"].layers[1],
        Layer(Recurrent(32, blocks=2), Mlp(48, bias=True)),
    ),
    max_length=256,
    final_soft_cap=10.0,
)
"""A layer of every kind."""


def as_matrices(config: Config, weights: ModelWeights) -> ModelWeights:
    specs = param_specs(config)
    shapes = {path: matrix_shape(path, spec) for path, spec in tree.flatten(specs).items()}
    return tree.build(specs, {path: leaf.reshape(shapes[path]) for path, leaf in tree.flatten(weights).items()})


def call(signature: Signature, weights: Any, states: dict[str, Any], ids: np.ndarray, start: int) -> dict[str, Any]:
    """Call a signature as LiteRT-LM does: padding at the end, and a causal mask of numbers to be added."""
    size = signature.inputs["tokens"].shape[1]
    tokens, positions = np.zeros((1, size), np.int32), np.full(size, -1, np.int32)
    tokens[0, : len(ids)], positions[: len(ids)] = ids, start + np.arange(len(ids))
    mask = np.full((1, 1, size, CONTEXT), MASKED, np.float32)
    for row in range(len(ids)):
        mask[0, 0, row, : start + row + 1] = 0
    results = jax.jit(signature.run)(weights, tokens, positions, mask, *states.values())
    return dict(zip(signature.outputs, results, strict=True))


def test_prefill_and_decoding_give_the_logits_of_the_decoder():
    config = CONFIG
    weights = make_weights(config)
    ids = random_ids(VOCAB, LENGTH)
    hidden, _ = forward(config, weights, jnp.asarray(ids)[None])
    expected = np.asarray(logits(config, weights, hidden))[0]

    prefill, decode = signatures(config, CONTEXT)
    matrices = as_matrices(config, weights)
    states = {name: np.zeros(spec.shape, np.float32) for name, spec in list(prefill.inputs.items())[3:]}
    states = call(prefill, matrices, states, ids[:PROMPT], 0)
    for place in range(PROMPT, LENGTH):
        results = call(decode, matrices, states, ids[place : place + 1], place)
        np.testing.assert_allclose(results.pop("logits")[0, 0], expected[place], atol=LOGITS, rtol=0)
        states = results


def test_states_have_the_names_of_the_runtime():
    prefill, decode = signatures(CONFIGS["capped"], CONTEXT)
    states = ("kv_cache_k_0", "kv_cache_k_1", "kv_cache_v_0", "kv_cache_v_1")
    assert (prefill.name, decode.name) == (f"prefill_{CONTEXT}", "decode")
    assert tuple(prefill.inputs) == ("tokens", "input_pos", "mask", *states)
    assert prefill.outputs == states
    assert decode.outputs == ("logits", *states)
