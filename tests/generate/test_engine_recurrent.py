"""The engine with a recurrent model: sequences of any length, past the window, of unbounded context."""

import jax
import numpy as np
import pytest

from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, pattern
from gemwright.model.params import ModelWeights
from gemwright.model.state import KVCache, room, with_room
from gemwright.model.transformer import forward, logits
from tests.helpers import random_ids
from tests.tiny.config import make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
VOCAB, WINDOW = 61, 9
_LOCAL = Attention(2, 1, 16, 16, rope=Rope(fraction=0.5), window=WINDOW, out_bias=True)
CONFIG = Config(
    32,
    VOCAB,
    pattern(5, *(Layer(mixer, Mlp(48, bias=True)) for mixer in (Recurrent(32, 2), Recurrent(32, 2), _LOCAL))),
    max_length=2**31 - 1,
    final_soft_cap=30.0,
    embed_scale=5.65625,
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CONFIG, make_weights(CONFIG), VOCAB)


@jax.jit
def _logits(params: ModelWeights, tokens: jax.Array) -> jax.Array:
    hidden, _ = forward(CONFIG, params, tokens)
    return logits(CONFIG, params, hidden[0])


def _logprobs(engine: Engine, ids: list[int]) -> np.ndarray:
    """[T, V] of one pass over the whole text, on the right padded to a length that all texts here share."""
    padded = np.zeros((1, 64), int)
    padded[0, : len(ids)] = ids
    scores = np.asarray(_logits(engine.params, padded), np.float64)[: len(ids)]
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_rows_of_any_length_equal_one_pass_over_each(engine: Engine):
    prompts = [random_ids(VOCAB, length, seed=length).tolist() for length in (1, 5, 40)]
    steps = list(engine.generate(prompts, [Sampling()] * 3, 2 * WINDOW, top_logprobs=0))
    for row, prompt in enumerate(prompts):
        tokens = [int(step.tokens[row]) for step in steps]
        expected = _logprobs(engine, prompt + tokens)[len(prompt) - 1 : -1]
        assert tokens == expected.argmax(-1).tolist()
        np.testing.assert_allclose([step.logprobs[row] for step in steps], expected.max(-1), rtol=0, atol=1e-5)


def test_a_text_is_scored(engine: Engine):
    ids = random_ids(VOCAB, 50).tolist()
    np.testing.assert_allclose(engine.score([ids])[0], _logprobs(engine, ids)[range(49), ids[1:]], rtol=0, atol=1e-5)


def test_the_state_never_grows(engine: Engine):
    state = engine.empty_state(1, 2000)
    assert room(state, CONFIG) is None
    assert with_room(state, CONFIG, 10**9, CONFIG.max_length) is state
    assert [entry.cells for entry in state.layers if isinstance(entry, KVCache)] == [WINDOW]
