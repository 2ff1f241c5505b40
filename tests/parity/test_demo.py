"""The real Gemma 3 270M against transformers, both in float32 and from the same GGUF file.

The reference's weights are decoded by ggml's own Python library, and its config is written out here. Each model takes
more than a gigabyte, so the reference computes its results first and is freed before gemwright's model is loaded.
"""

import gc
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import gemwright
from gemwright import tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.open import open_checkpoint
from gemwright.model.transformer import forward, logits
from gemwright.text.tokenizer import Tokenizer
from tests.helpers import english_text
from tests.quick_reader import QuickReader

LENGTH = 1600
"""Tokens of the long text: three windows of 512 and a bit."""
POSITIONS = [0, 1, 17, 510, 511, 512, 513, 1023, 1536, LENGTH - 1]
"""Positions before, at and far past the window of 512."""
PROMPTS = ["Once upon a time", "The capital of France is"]
WRITTEN = 24
"""Tokens of a greedy continuation."""
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


def _make_model(path: Path) -> Any:
    """Return transformers' model with the weights as ggml's own library decodes them."""
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
    for tensor in QuickReader(path).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        state[_name(tensor.name)] = torch.from_numpy(values - 1.0 if "norm" in tensor.name else values)
    # Loading skips the random initialization, which takes longer than all else.
    model = Gemma3ForCausalLM.from_pretrained(None, config=config, state_dict=state).eval()
    assert dict(model.named_parameters()).keys() == state.keys()
    return model


def _name(gguf_name: str) -> str:
    """Return transformers' name of a tensor of the file."""
    if gguf_name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[gguf_name]
    _, layer, leaf, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{LAYER[leaf]}.weight"


@pytest.fixture(scope="module")
def tokenizer(demo_gguf: Path) -> Tokenizer:
    return Tokenizer(open_checkpoint(demo_gguf).vocabulary())


@pytest.fixture(scope="module")
def long_text(tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of `english_text`."""
    ids = tokenizer.with_bos(tokenizer.encode(english_text()))
    assert len(ids) >= LENGTH
    return ids[:LENGTH]


@dataclass(frozen=True)
class Reference:
    """Results of transformers' model.

    Attributes:
        digests: Of every weight, by its name.
        logits: [len(POSITIONS), V] at POSITIONS of the long text.
        logprobs: [LENGTH - 1] of every token of the long text but the first, in float64.
        greedy: [WRITTEN] token ids of the greedy continuation of each prompt.
    """

    digests: dict[str, bytes]
    logits: np.ndarray
    logprobs: np.ndarray
    greedy: dict[str, list[int]]


@pytest.fixture(scope="module")
def reference(demo_gguf: Path, tokenizer: Tokenizer, long_text: list[int]) -> Reference:
    model = _make_model(demo_gguf)
    digests = {name: _digest(weight.detach().numpy()) for name, weight in model.named_parameters()}
    with torch.no_grad():
        hidden = model.model(torch.tensor([long_text])).last_hidden_state[0]
        scores = model.lm_head(hidden[POSITIONS]).numpy()
        parts: list[torch.Tensor] = []
        for start in range(0, LENGTH - 1, 50):  # the logits of all positions at once would take three gigabytes
            targets = torch.tensor(long_text[start + 1 : start + 51])
            # torch's float32 log_softmax adds up 262,144 terms in a few partial sums, 8 of them with AVX2, so that
            # every log-probability is 1.4e-5 too large: normalize the float32 logits in float64.
            logprobs = torch.log_softmax(model.lm_head(hidden[start : start + len(targets)]).double(), dim=-1)
            parts.append(logprobs.gather(1, targets[:, None])[:, 0])
        greedy = {prompt: _continue(model, tokenizer.with_bos(tokenizer.encode(prompt))) for prompt in PROMPTS}
    del model
    gc.collect()
    return Reference(digests, scores, torch.cat(parts).numpy(), greedy)


def _digest(weight: np.ndarray) -> bytes:
    """Return the same bytes for arrays of equal values; -0.0 equals 0.0."""
    return hashlib.sha256(np.ascontiguousarray(weight) + np.float32(0)).digest()


def _continue(model: Any, ids: list[int]) -> list[int]:
    given = torch.tensor([ids])
    written = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=WRITTEN, do_sample=False)
    return written[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def ours(reference: Reference, demo: gemwright.Model) -> gemwright.Model:
    """The model, loaded when the reference's is freed."""
    return demo


def test_every_weight_equals_the_one_that_ggml_reads(ours: gemwright.Model, reference: Reference):
    mapping = map_huggingface(ours.engine.config)
    weights = {mapping[path].name: leaf for path, leaf in tree.flatten(ours.engine.params).items()}
    assert weights.keys() == reference.digests.keys()
    for name, weight in weights.items():
        assert _digest(np.asarray(weight)) == reference.digests[name], name


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
