"""A tiny vocabulary with the special pieces of Gemma's."""

from gemwright.checkpoint.vocabulary import add_control_tokens
from gemwright.text.vocabulary import Vocabulary

MARKERS = {67: "<|fim_prefix|>", 68: "<|fim_middle|>", 69: "<|fim_suffix|>", 70: "<|file_separator|>"}
LETTERS = [*"\u2581abcdefghijklmnopqrstuvwxyz.,!?ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
MERGES = ["th", "he", "the", "\u2581the", "an", "and", "\u2581and", "in", "ing", "er", "on", "re"]
PALIGEMMA_PIECES = 1024 + 128
"""Number of location and segmentation pieces that a PaliGemma has and Gemma's tokenizer file lacks."""


def make_vocabulary(kind: str = "gemma") -> Vocabulary:
    """Return Gemma's special pieces, markers and bytes, the alphabet and a few merges.

    A Gemma 3 with a vision tower ("gemma3") also has the two image markers.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(MARKERS.get(n, f"<unused{n}>") for n in range(4, 71))]
    control = [*special, "<start_of_turn>", "<end_of_turn>"]
    byte = [f"<0x{value:02X}>" for value in range(256)]
    learned = [*LETTERS, *MERGES]
    kinds = [3] * len(control) + [6] * 256 + [1] * len(learned)
    kinds[3] = 2
    scores = [0.0] * (len(control) + 256) + [-float(rank) for rank in range(len(learned))]
    values = {"tokens": [*control, *byte, *learned], "scores": scores, "token_type": kinds}
    vocabulary = Vocabulary.from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()})
    return add_control_tokens(vocabulary, "<start_of_image>", "<end_of_image>") if kind == "gemma3" else vocabulary


def embedding_size(kind: str) -> int:
    """Return the number of embeddings of a model, which exceeds its tokenizer file's pieces in a PaliGemma."""
    return make_vocabulary(kind).size + (PALIGEMMA_PIECES if kind.startswith("paligemma") else 0)
