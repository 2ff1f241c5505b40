"""The JSON files beside the weights in a Hugging Face folder: config, tokenizer, generation settings, processor.

Source: huggingface/transformers `configuration_utils.py`, `tokenization_utils_base.py` (5.23).
"""

from collections.abc import Mapping
from typing import Any

from gemwright.checkpoint.configs import processor
from gemwright.checkpoint.open import Checkpoint
from gemwright.text.vocabulary import Vocabulary


def model_documents(
    checkpoint: Checkpoint, vocabulary: Vocabulary, config: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Return the JSON files of a model by name.

    Args:
        checkpoint: The source of the settings.
        vocabulary: Its vocabulary.
        config: The contents of `config.json` without the ids of tokens.
    """
    config, documents = dict(config), text_documents(checkpoint, vocabulary)
    if vision := checkpoint.config.vision:
        config |= processor.token_ids(checkpoint.family, vocabulary)
        documents |= processor.processor_documents(checkpoint.family, vision)
    return {"config.json": config | _find_special_ids(checkpoint, vocabulary), **documents}


def text_documents(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Mapping[str, Any]]:
    """Return the JSON files of a tokenizer, its chat template and the ids that end a text, by name."""
    settings = vocabulary.tokenizer_config(checkpoint.chat_template) | name_special_tokens(checkpoint, vocabulary)
    if checkpoint.config.vision:
        settings |= processor.tokenizer_keys(checkpoint.family)
    return {
        "generation_config.json": _find_special_ids(checkpoint, vocabulary) | dict(checkpoint.generation),
        "tokenizer.json": vocabulary.tokenizer_json(),
        "tokenizer_config.json": settings,
    }


def name_special_tokens(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, str]:
    """Return the names of BOS, EOS and so on, which may be others than Gemma's in a fine-tune."""
    known = set(vocabulary.pieces)
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return {name: token for name in names if (token := checkpoint.special_tokens.get(name)) in known}


def _find_special_ids(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    index = vocabulary.pieces.index
    stops = list(checkpoint.stop_ids) or [index("<eos>")]
    return {
        "bos_token_id": index("<bos>"),
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": index("<pad>"),
    }
