"""The real Gemma 3 270M against transformers' own reading of the same GGUF file, both in float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import gemwright
from gemwright.model.transformer import forward, logits

LENGTH = 1600
"""Tokens of the long text: three windows of 512 and a bit."""
LOGIT = 2e-3
"""Absolute tolerance of a logit. They are of the order of 20, and pass eighteen layers whose activations reach
thousands, so that 1e-4 of their size, the usual distance of two float32 programs, is 2e-3."""


@pytest.fixture(scope="module")
def theirs(demo_gguf: Path) -> Iterator[Any]:
    from transformers import AutoModelForCausalLM

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        model = AutoModelForCausalLM.from_pretrained(
            demo_gguf.parent, gguf_file=demo_gguf.name, dtype=torch.float32, attn_implementation="eager"
        )
    yield model.eval()


@pytest.fixture(scope="module")
def ours(demo_gguf: Path) -> gemwright.Model:
    return gemwright.load(demo_gguf, dtype=jnp.float32)


@pytest.fixture(scope="module")
def long_text(ours: gemwright.Model) -> list[int]:
    """Plain English of the project's own making that repeats no sentence."""
    who = ["The miller", "A young clerk", "My neighbour", "The old captain", "Her sister", "The baker's boy", "Nobody"]
    did = ["carried", "counted", "forgot", "painted", "sold", "found again", "wrote about", "dreamed of"]
    what = ["the brass lamp", "seven letters", "a map of the coast", "the broken clock", "two white horses"]
    when = [
        "before sunrise",
        "in the autumn of 1871",
        "while it rained",
        "without a word",
        "on the way to Lisbon",
        "twice",
    ]
    sentences = [
        f"{who[i % 7]} {did[i % 8]} {what[i % 5]} {when[(i // 3) % 6]}, and the river rose by {i} feet."
        for i in range(120)
    ]
    ids = ours.encode(" ".join(sentences))
    assert len(ids) >= LENGTH
    return ids[:LENGTH]


@pytest.fixture(scope="module")
def reference_logits(theirs: Any, long_text: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return theirs(torch.tensor([long_text])).logits[0]


def test_every_weight_equals_the_one_that_transformers_reads(ours: gemwright.Model, theirs: Any):
    from gemwright import tree
    from gemwright.checkpoint import names

    expected = dict(theirs.named_parameters())
    plan = names.huggingface(ours.engine.config)
    weights = tree.flatten(ours.engine.params)
    assert {plan[path].name for path in weights} == expected.keys()
    for path, leaf in weights.items():
        reference = expected[plan[path].name].detach().numpy()
        # Both multiply and add a block's scales in float32, and GGUF's 1 + gain loses a bit when 1 is taken away.
        np.testing.assert_allclose(np.asarray(leaf).reshape(reference.shape), reference, rtol=1e-6, atol=1e-6)


def test_the_likeliest_tokens_and_their_logits(ours: gemwright.Model, long_text: list[int], reference_logits: Any):
    """In one pass without a state, at positions before, at and far past the window of 512."""
    engine = ours.engine
    hidden, _ = jax.jit(forward, static_argnums=0)(engine.config, engine.params, jnp.asarray([long_text]))
    positions = [0, 1, 17, 510, 511, 512, 513, 1023, 1100, LENGTH - 1]
    found = np.asarray(logits(engine.config, engine.params, hidden[0, jnp.asarray(positions)]))
    expected = reference_logits[positions].numpy()
    best = np.argsort(-expected, axis=-1)[:, :10]
    np.testing.assert_array_equal(np.argsort(-found, axis=-1)[:, :10], best)
    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGIT)


def test_the_likelihood_of_every_token_of_a_long_text(
    ours: gemwright.Model, long_text: list[int], reference_logits: Any
):
    """Through the engine, in chunks and with rings that have wrapped."""
    found = ours.engine.score([long_text])[0]
    targets = torch.tensor(long_text[1:])
    expected = torch.log_softmax(reference_logits[:-1], dim=-1).gather(1, targets[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGIT)
    assert found.mean() == pytest.approx(expected.mean(), abs=1e-5)
    assert -4.0 < found.mean() < -0.1  # it is a language model


@pytest.mark.parametrize("prompt", ["Once upon a time", "The capital of France is"])
def test_greedy_text(ours: gemwright.Model, theirs: Any, prompt: str):
    ids = ours.encode(prompt)
    with torch.no_grad():
        written = theirs.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False, pad_token_id=0)
    expected = [token for token in written[0, len(ids) :].tolist() if token != ours.tokenizer.eos_id]
    completion = ours.generate(prompt, max_tokens=48, temperature=0.0)
    assert completion.tokens == expected
    assert len(completion.tokens) > 20


def test_token_ids(demo_gguf: Path, ours: gemwright.Model):
    """transformers' own conversion of the file's vocabulary, on texts at the edges of the tokenizer."""
    from transformers.integrations.gguf import convert_gguf_tokenizer

    vocabulary = ours.tokenizer.vocabulary.gguf_metadata()
    fields = {key: list(vocabulary[f"tokenizer.ggml.{key}"]) for key in ("tokens", "scores", "token_type")}
    oracle = convert_gguf_tokenizer("gemma3", {"tokenizer_type": "llama", **fields})[0]
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
        assert ours.tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids, text
