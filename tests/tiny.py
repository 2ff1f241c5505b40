"""Models small enough for a test, with every mechanism of the large ones."""

from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope, pattern
from gemwright.model.spec import ModelWeights, init

VOCAB = 97
WINDOW = 7
_EVERYTHING = Attention(4, 2, head_dim=16, query_scalar=24.0)
_QK = Attention(4, 1, head_dim=16, query_scalar=16.0, rope=Rope(1e6, 8.0), qk_norm=True)


def _local(mixer: Attention, rope: Rope) -> Attention:
    return Attention(**{**vars(mixer), "window": WINDOW, "rope": rope})


def _layers(depth: int, *mixers: Attention, post_norms: bool) -> tuple[Layer, ...]:
    return pattern(depth, *(Layer(mixer, Mlp(48), post_norms) for mixer in mixers))


_CAPPED = Attention(4, 2, head_dim=16, query_scalar=24.0, soft_cap=5.0)
CONFIGS = {
    "multi-query": Config(32, VOCAB, _layers(2, Attention(4, 1, 16, 16.0), post_norms=False), context=256),
    "full heads": Config(32, VOCAB, _layers(2, Attention(3, 3, 16, 16.0), post_norms=False), context=256),
    "capped": Config(
        32, VOCAB, _layers(3, _local(_CAPPED, Rope()), _CAPPED, post_norms=True), context=256, final_soft_cap=10.0
    ),
    "qk-norm": Config(32, VOCAB, _layers(7, *[_local(_QK, Rope())] * 5, _QK, post_norms=True), context=256),
    "local only": Config(32, VOCAB, _layers(2, _local(_EVERYTHING, Rope()), post_norms=True), context=256),
}
"""One configuration for every way in which the family mixes tokens."""


def weights(config: Config, seed: int = 0, dtype: Any = jnp.float32) -> ModelWeights:
    """Random weights whose norm gains are not zero, so that every part has a say."""
    numbers = np.random.default_rng(seed)

    def shake(path: str, leaf: jax.Array) -> jax.Array:
        noise = 0.3 * numbers.standard_normal(leaf.shape) if path.endswith("norm") else 0.0
        return (leaf + noise).astype(dtype)

    return tree.map_with_path(shake, init(config, jax.random.key(seed)))


_MARKERS = ("<mask>", "<start_of_turn>", "<end_of_turn>")
_INFILL = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>")
_CHARACTERS = "\u2581etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ0123456789.,!?'\"-:;()"
_MERGES = ("\u2581t", "he", "\u2581the", "in", "er", "on", "\u2581a", "re", "at", "en", "\u2581s", "ou", "nd", "\u2581and")


def pieces() -> tuple[list[str], list[float], list[int]]:
    """A vocabulary of Gemma's form: text, score and SentencePiece type of every id."""
    rows = [("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("<unk>", 2), *((name, 3) for name in (*_MARKERS, *_INFILL))]
    rows += [("\n", 4), ("\n\n", 4), ("\u2581\u2581", 4), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    learned = [*_MERGES, *_CHARACTERS]
    scores = [0.0] * len(rows) + [-float(rank) for rank in range(len(learned))]
    rows += [(piece, 1) for piece in learned]
    return [piece for piece, _ in rows], scores, [kind for _, kind in rows]


def tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Write a random Gemma 3 of eight layers with a small vocabulary, by the format's own library."""
    width, heads, kv_heads, head_dim, hidden, depth, window, context = 32, 2, 1, 16, 48, 8, 16, 256
    names, scores, kinds = pieces()
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(depth)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(window)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(names.index("<bos>"))
    writer.add_eos_token_id(names.index("<eos>"))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)

    numbers = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        values = numbers.standard_normal(shape) * (0.2 if len(shape) == 1 else shape[-1] ** -0.5)
        writer.add_tensor(f"{name}.weight", (values + (1.0 if len(shape) == 1 else 0.0)).astype(np.float32))

    add("token_embd", len(names), width)
    add("output_norm", width)
    for layer in range(depth):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            add(block + norm, width)
        add(block + "attn_q_norm", head_dim)
        add(block + "attn_k_norm", head_dim)
        add(block + "attn_q", heads * head_dim, width)
        add(block + "attn_k", kv_heads * head_dim, width)
        add(block + "attn_v", kv_heads * head_dim, width)
        add(block + "attn_output", width, heads * head_dim)
        add(block + "ffn_gate", hidden, width)
        add(block + "ffn_up", hidden, width)
        add(block + "ffn_down", width, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
