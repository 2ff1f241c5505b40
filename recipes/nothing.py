"""Make a tiny model from nothing: a vocabulary that is trained on some texts, and random weights."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemwright.checkpoint.create import create
from gemwright.families import FILL_IN_THE_MIDDLE

CONTROL = (
    *(FILL_IN_THE_MIDDLE.prefix, FILL_IN_THE_MIDDLE.middle, FILL_IN_THE_MIDDLE.suffix, FILL_IN_THE_MIDDLE.separator),
    *("<start_of_turn>", "<end_of_turn>"),
)
"""Control tokens after those that every vocabulary has."""
WHITESPACE = (*("\n" * n for n in range(1, 5)), "\t", "\t\t", *("\u2581" * n for n in range(2, 17)))
"""Runs of whitespace that are one token, as in Gemma's vocabulary."""
MAX_LINE = 1 << 16
"""Maximum number of bytes of a line that a vocabulary is trained on."""


def train_vocabulary(texts: Iterable[str], size: int, file: Path) -> Path:
    """Train a SentencePiece vocabulary like Gemma's: byte fallback, split digits, whitespace kept.

    Args:
        texts: The texts.
        size: Number of tokens.
        file: The `.model` file to write; one that is there is kept.
    """
    if file.exists():
        return file
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        control_symbols=list(CONTROL),
        user_defined_symbols=list(WHITESPACE),
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        max_sentence_length=MAX_LINE,
        num_threads=2,
        minloglevel=2,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.getvalue())
    return file


def make_model(config: Mapping[str, Any], vocabulary: Path, folder: Path, seed: int = 0) -> Path:
    """Make a model with random weights, unless its folder is there; as `gemwright init` does.

    Args:
        config: Keys of a `config.json`, without the size of the vocabulary.
        vocabulary: The tokenizer.
        folder: The folder of the model.
        seed: Seed of the weights.
    """
    if folder.exists():
        return folder
    from sentencepiece import SentencePieceProcessor

    size = SentencePieceProcessor(model_file=str(vocabulary)).get_piece_size()
    file = folder.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**config, "vocab_size": size}, indent=2) + "\n", encoding="utf-8")
    create(file, str(vocabulary), folder, seed)
    return folder
