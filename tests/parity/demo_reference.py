"""Results of transformers' Gemma 3 270M in float32, from the demo's GGUF file.

The weights are decoded by ggml's own Python library, and the config is written out here.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.quick_reader import QuickReader

LENGTH = 1100
"""Tokens of the long text: two windows of 512 and a bit."""
POSITIONS = [0, 1, 17, 510, 511, 512, 513, 1023, 1024, LENGTH - 1]
"""Positions before, at and far past the window of 512."""
WRITTEN = 24
"""Tokens of a greedy continuation."""
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


def compute_reference(path: Path, long_text: list[int], prompts: dict[str, list[int]]) -> Reference:
    """Return the results for a text and for prompts, given as token ids."""
    model = _make_model(path)
    digests = {name: digest(weight.detach().numpy()) for name, weight in model.named_parameters()}
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
        greedy = {prompt: _continue(model, ids) for prompt, ids in prompts.items()}
    return Reference(digests, scores, torch.cat(parts).numpy(), greedy)


def digest(weight: np.ndarray) -> bytes:
    """Return the same bytes for arrays of equal values; -0.0 equals 0.0."""
    found = hashlib.sha256()
    for start in range(0, len(weight), 4096):  # a sum of all rows at once would be another copy of the weight
        found.update(np.ascontiguousarray(weight[start : start + 4096]) + np.float32(0))
    return found.digest()


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


def _continue(model: Any, ids: list[int]) -> list[int]:
    given = torch.tensor([ids])
    written = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=WRITTEN, do_sample=False)
    return written[0, len(ids) :].tolist()
