"""Prompts with images: their chunks, and the engine's results for each sequence against one pass over it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.errors import GemwrightError
from gemwright.generate.buckets import CHUNKS
from gemwright.generate.engine import Engine
from gemwright.generate.prompts import Chunk, Ids, Prompt, chunks
from gemwright.generate.sampling import Sampling
from gemwright.model.transformer import SoftTokens, forward, logits
from gemwright.text.image_format import SOFT_TOKEN
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, WINDOW, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
WIDTH = CONFIGS["capped"].width
LOGPROB = 2e-5
"""Absolute tolerance of log-probabilities that are computed over another shape."""


def _prompt(layout: list[tuple[str, int]], seed: int = 0) -> Prompt:
    """Return a prompt of ("text" | "image" | "prefix", length) parts; a prefix is text within a group."""
    numbers = np.random.default_rng(seed)
    ids, blocks = list[int](), list[int]()
    for number, (kind, length) in enumerate(layout):
        ids += [SOFT_TOKEN] * length if kind == "image" else numbers.integers(1, VOCAB, length).tolist()
        blocks += [-1 if kind == "text" else number] * length
    rows = numbers.standard_normal((ids.count(SOFT_TOKEN), WIDTH)).astype(np.float32)
    return Prompt(ids, rows, np.asarray(blocks, np.int32))


_PARTS = st.tuples(st.sampled_from(["text", "image", "prefix"]), st.integers(1, 700))
_LAYOUTS = st.lists(_PARTS, min_size=1, max_size=5) | st.integers(1, 900)


@settings(max_examples=60, deadline=None)
@given(st.lists(_LAYOUTS, min_size=1, max_size=3))
def test_chunks_hold_every_token_once_and_part_no_block(layouts: list[Any]):
    prompts: list[Ids | Prompt] = [[7] * layout if isinstance(layout, int) else _prompt(layout) for layout in layouts]
    cut: list[Chunk] = list(chunks(prompts))
    for row, prompt in enumerate(prompts):
        ids = prompt.ids if isinstance(prompt, Prompt) else prompt
        assert np.concatenate([np.asarray(c.tokens)[row, c.valid[row]] for c in cut]).tolist() == list(ids)
        if not isinstance(prompt, Prompt):
            continue
        kept = [(np.asarray(c.soft_tokens.groups)[row, c.valid[row]]) for c in cut if c.soft_tokens is not None]
        assert np.concatenate(kept).tolist() == prompt.groups.tolist()
        homes = [set(part[part >= 0].tolist()) for part in kept]
        assert sum(map(len, homes)) == len(set().union(*homes))
        places = np.asarray(ids) == SOFT_TOKEN
        rows = np.concatenate(
            [np.asarray(c.soft_tokens.embeddings)[row, c.valid[row]] for c in cut if c.soft_tokens is not None]
        )
        np.testing.assert_array_equal(rows[places], prompt.soft_tokens)
    assert all(c.tokens.shape[1] in CHUNKS or c.tokens.shape[1] % CHUNKS[-1] == 0 for c in cut)


def _alone(engine: Engine, prompt: Prompt | list[int], after: list[int]) -> np.ndarray:
    """Return log-probabilities of the token after each one of `prompt + after`, in one pass without a state."""
    ids = list(prompt.ids if isinstance(prompt, Prompt) else prompt) + after
    soft_tokens = None
    if isinstance(prompt, Prompt):
        rows = np.zeros((1, len(ids), WIDTH), np.float32)
        rows[0, np.asarray(ids) == SOFT_TOKEN] = prompt.soft_tokens
        blocks = np.concatenate([prompt.groups, np.full(len(after), -1, np.int32)])
        soft_tokens = SoftTokens(jnp.asarray(rows), jnp.asarray(blocks)[None])
    hidden, _ = forward(engine.config, engine.params, jnp.asarray([ids]), soft_tokens=soft_tokens)
    scores = np.asarray(logits(engine.config, engine.params, hidden[0]), np.float64)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


LAYOUTS: dict[str, list[Any]] = {
    "images within text": [[("text", 3), ("image", 6), ("text", 9), ("image", 6), ("text", 2)]],
    "a prefix longer than the window": [[("prefix", 3 * WINDOW)]],
    "rows of several kinds": [[("text", 40), ("image", 6), ("text", 1)], [("image", 6), ("text", 30)], None],
    "prefixes of several lengths": [[("prefix", 9)], [("prefix", 40)], [("prefix", 33)]],
}


@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_equal_one_pass_over_each(layouts: list[Any]):
    config = CONFIGS["capped"]
    engine = Engine(config, make_weights(config), VOCAB)
    prompts = [
        random_ids(VOCAB, 20, seed=5).tolist() if layout is None else _prompt(layout, seed)
        for seed, layout in enumerate(layouts)
    ]
    steps = list(engine.generate(prompts, [Sampling()] * len(prompts), WINDOW + 3, top_logprobs=0))
    for row, prompt in enumerate(prompts):
        tokens = [int(step.tokens[row]) for step in steps]
        expected = _alone(engine, prompt, tokens)[len(prompt) - 1 : -1]
        assert tokens == expected.argmax(-1).tolist()
        got = [float(step.logprobs[row]) for step in steps]
        np.testing.assert_allclose(got, expected.max(-1), rtol=0, atol=LOGPROB)


def test_a_text_is_scored_behind_a_picture():
    config = CONFIGS["capped"]
    engine = Engine(config, make_weights(config), VOCAB)
    prompt, text = _prompt([("prefix", 2), ("text", 1)]), [5, 9, 2, 30]
    whole = Prompt([*prompt.ids, *text], prompt.soft_tokens, np.append(prompt.groups, [-1] * 4).astype(np.int32))
    expected = _alone(engine, prompt, text)[2:-1][range(4), text]
    np.testing.assert_allclose(engine.score([whole])[0][2:], expected, rtol=0, atol=LOGPROB)


def test_rows_are_for_prompts_with_pictures():
    config = CONFIGS["capped"]
    engine = Engine(config, make_weights(config), VOCAB)
    with pytest.raises(GemwrightError, match="between 0"):
        list(engine.generate([[3, SOFT_TOKEN, 4]], [Sampling()], 3))
