"""The real Gemma 3 270M against transformers, both in float32 and from the same GGUF file.

Each model takes more than a gigabyte, so the reference computes its results in a process of its own, which has ended
when gemwright's model is loaded.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gemwright
from gemwright import tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.open import open_checkpoint
from gemwright.model.transformer import forward, logits
from gemwright.text.tokenizer import Tokenizer
from tests.helpers import english_text, run_in_new_process
from tests.parity.demo_reference import LENGTH, POSITIONS, WRITTEN, Reference, compute_reference, digest

PROMPTS = ["Once upon a time", "The capital of France is"]
LOGIT = 2e-4
"""Absolute tolerance of a logit or a log-probability. They reach 28: this is 1e-5 of that."""


@pytest.fixture(scope="module")
def tokenizer(demo_gguf: Path) -> Tokenizer:
    return Tokenizer(open_checkpoint(demo_gguf).vocabulary())


@pytest.fixture(scope="module")
def long_text(tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of `english_text`."""
    ids = tokenizer.with_bos(tokenizer.encode(english_text()))
    assert len(ids) >= LENGTH
    return ids[:LENGTH]


@pytest.fixture(scope="module")
def reference(joined_demo: Path, tokenizer: Tokenizer, long_text: list[int]) -> Reference:
    prompts = {prompt: tokenizer.with_bos(tokenizer.encode(prompt)) for prompt in PROMPTS}
    return run_in_new_process(compute_reference, joined_demo, long_text, prompts)


@pytest.fixture(scope="module")
def ours(reference: Reference, demo: gemwright.Model) -> gemwright.Model:
    """The model, loaded when the reference's is freed."""
    return demo


def test_every_weight_equals_the_one_that_ggml_reads(ours: gemwright.Model, reference: Reference):
    mapping = map_huggingface(ours.engine.config)
    weights = {mapping[path].name: leaf for path, leaf in tree.flatten(ours.engine.params).items()}
    assert weights.keys() == reference.digests.keys()
    for name, weight in weights.items():
        assert digest(np.asarray(weight)) == reference.digests[name], name


def test_the_likeliest_tokens_and_their_logits(ours: gemwright.Model, reference: Reference, long_text: list[int]):
    """In one pass without a state."""
    engine = ours.engine
    hidden, _ = forward(engine.config, engine.params, jnp.asarray([long_text]))
    found = np.asarray(logits(engine.config, engine.params, hidden[0, jnp.asarray(POSITIONS)]))
    best = np.argsort(-reference.logits, axis=-1)[:, :10]
    np.testing.assert_array_equal(np.argsort(-found, axis=-1)[:, :10], best)
    np.testing.assert_allclose(found, reference.logits, rtol=0, atol=LOGIT)


def test_the_likelihood_of_every_token_of_a_long_text(
    ours: gemwright.Model, reference: Reference, long_text: list[int]
):
    """Through the engine, in chunks and with caches that have rotated."""
    found = ours.engine.score([long_text])[0]
    np.testing.assert_allclose(found, reference.logprobs, rtol=0, atol=LOGIT)
    assert found.mean() == pytest.approx(reference.logprobs.mean(), abs=1e-5)
    assert -4.0 < found.mean() < -0.1  # it is a language model


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text(ours: gemwright.Model, reference: Reference, prompt: str):
    completion = ours.generate(prompt, max_tokens=WRITTEN, temperature=0.0)
    assert len(completion.tokens) == WRITTEN
    assert completion.tokens == reference.greedy[prompt]


def test_token_ids(tokenizer: Tokenizer, demo_oracle: Any):
    """On texts at the edges of the tokenizer."""
    for text in [
        "Hello, world!",
        " a  b   c    ",
        "naïve café 漢字かな 한국어 👩‍👩‍👧‍👦 🇺🇳",
        "0123456789 3.14159 1,000,000",
        "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
        "\t\t\n\n\n    \n",
        "<table><tr><td>x</td></tr></table>",
        "שלום עולם مرحبا",
        "x" * 300,
        "\x00\x07\u200b\ufeff",
    ]:
        assert tokenizer.encode(text) == demo_oracle.encode(text, add_special_tokens=False).ids, text
