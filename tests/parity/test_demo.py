"""The real Gemma 3 270M against transformers, both in float32 and from the same GGUF file.

The reference's weights are decoded by ggml's own Python library, and its config is written out here.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from quick_reader import QuickReader

import gemwright
from gemwright.model.transformer import forward, logits
from gemwright.checkpoint.names.huggingface import map_huggingface

LENGTH = 1600
"""Tokens of the long text: three windows of 512 and a bit."""
WRITTEN = 24
LOGIT = 2e-4
"""Absolute tolerance of a logit or a log-probability. They reach 28: this is 1e-5 of that."""
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@pytest.fixture(scope="module")
def theirs(demo_gguf: Path) -> Any:
    """transformers' model with the weights as ggml's own library decodes them."""
    from gguf import dequantize
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.set_num_threads(1)
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        max_position_embeddings=32_768,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        attn_implementation="eager",
    )
    state: dict[str, torch.Tensor] = {}
    for tensor in QuickReader(demo_gguf).tensors:
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        state[_name(tensor.name)] = values - 1.0 if "norm" in tensor.name else values
    # So that no weights are drawn at random first, which takes longer than all else.
    model = Gemma3ForCausalLM.from_pretrained(None, config=config, state_dict=state).eval()
    assert dict(model.named_parameters()).keys() == state.keys()
    return model


def _name(gguf_name: str) -> str:
    """What transformers calls a tensor of the file."""
    if gguf_name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[gguf_name]
    _, layer, leaf, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{LAYER[leaf]}.weight"


@pytest.fixture(scope="module")
def ours(demo: gemwright.Model) -> gemwright.Model:
    return demo


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
def reference_hidden(theirs: Any, long_text: list[int]) -> torch.Tensor:
    """[LENGTH, D]; the logits of all positions together would take two gigabytes."""
    with torch.no_grad():
        return theirs.model(torch.tensor([long_text])).last_hidden_state[0]


def test_every_weight_equals_the_one_that_ggml_reads(ours: gemwright.Model, theirs: Any):
    from gemwright import tree
    from gemwright.checkpoint.names.mapping import mapping

    expected = dict(theirs.named_parameters())
    mapping = map_huggingface(ours.engine.config)
    weights = tree.flatten(ours.engine.params)
    assert {mapping[path].name for path in weights} == expected.keys()
    for path, leaf in weights.items():
        reference = expected[mapping[path].name].detach().numpy()
        np.testing.assert_array_equal(np.asarray(leaf).reshape(reference.shape), reference)


def test_the_likeliest_tokens_and_their_logits(
    ours: gemwright.Model, theirs: Any, long_text: list[int], reference_hidden: Any
):
    """In one pass without a state, at positions before, at and far past the window of 512."""
    engine = ours.engine
    hidden, _ = forward(engine.config, engine.params, jnp.asarray([long_text]))
    positions = [0, 1, 17, 510, 511, 512, 513, 1023, 1536, LENGTH - 1]
    found = np.asarray(logits(engine.config, engine.params, hidden[0, jnp.asarray(positions)]))
    with torch.no_grad():
        expected = theirs.lm_head(reference_hidden[positions]).numpy()
    best = np.argsort(-expected, axis=-1)[:, :10]
    np.testing.assert_array_equal(np.argsort(-found, axis=-1)[:, :10], best)
    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGIT)


def test_the_likelihood_of_every_token_of_a_long_text(
    ours: gemwright.Model, theirs: Any, long_text: list[int], reference_hidden: Any
):
    """Through the engine, in chunks and with rings that have wrapped."""
    found = ours.engine.score([long_text])[0]
    parts: list[np.ndarray] = []
    for start in range(0, LENGTH - 1, 100):
        targets = torch.tensor(long_text[start + 1 : start + 101])
        with torch.no_grad():
            scores = torch.log_softmax(theirs.lm_head(reference_hidden[start : start + len(targets)]), dim=-1)
        parts.append(scores.gather(1, targets[:, None])[:, 0].numpy())
    expected = np.concatenate(parts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGIT)
    assert found.mean() == pytest.approx(expected.mean(), abs=1e-5)
    assert -4.0 < found.mean() < -0.1  # it is a language model


@pytest.mark.parametrize("prompt", ["Once upon a time", "The capital of France is"])
def test_greedy_text(ours: gemwright.Model, theirs: Any, prompt: str):
    """Every token is the one that transformers puts first after all before it: its own greedy text is the same."""
    ids = ours.encode(prompt)
    completion = ours.generate(prompt, max_tokens=WRITTEN, temperature=0.0)
    assert len(completion.tokens) == WRITTEN
    with torch.no_grad():
        scores = theirs(torch.tensor([ids + completion.tokens])).logits[0, len(ids) - 1 : -1]
    assert completion.tokens == scores.argmax(dim=-1).tolist()


def test_token_ids(ours: gemwright.Model, demo_oracle: Any):
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
        assert ours.tokenizer.encode(text) == demo_oracle.encode(text, add_special_tokens=False).ids, text
