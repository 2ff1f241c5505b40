"""Write the files from which transformers makes the processor of a vision model, and find its special tokens.

Settings: the hub's `paligemma-*` and `gemma-3-*`; huggingface/transformers `models/{paligemma,gemma3}/processing_*.py`.
"""

from typing import Any

from gemwright.families import Family, Processor
from gemwright.model.config import Vision
from gemwright.text.vocabulary import Vocabulary

_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's number of each filter."""


def missing_tokens(family: Family, vocabulary: Vocabulary) -> list[str]:
    """Return the processor's special tokens that a vocabulary lacks; SentencePiece files lack that of soft tokens."""
    present = set(vocabulary.pieces)
    return [token for token in _processor(family).tokens.values() if token not in present]


def token_ids(family: Family, vocabulary: Vocabulary) -> dict[str, int]:
    """Return the keys of `config.json` for the ids of special tokens: `image_token_index` and the like."""
    return {f"{name}_index": vocabulary.pieces.index(token) for name, token in _processor(family).tokens.items()}


def tokenizer_keys(family: Family) -> dict[str, Any]:
    """Return the additional keys of `tokenizer_config.json`."""
    processor = _processor(family)
    tokens = dict(processor.tokens)
    return tokens | {"extra_special_tokens": tokens, "processor_class": processor.name}


def processor_documents(family: Family, vision: Vision) -> dict[str, dict[str, Any]]:
    """Return the JSON files of the processor by name."""
    processor = _processor(family)
    of_processor = {"processor_class": processor.name, "image_seq_length": vision.tokens}
    of_images: dict[str, Any] = {
        "image_processor_type": processor.image_class,
        "do_convert_rgb": processor.convert_rgb,
        "do_resize": True,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "resample": _RESAMPLE[family.hub_resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    documents = {"preprocessor_config.json": of_images | of_processor}
    return documents | ({"processor_config.json": of_processor} if processor.has_own_file else {})


def _processor(family: Family) -> Processor:
    assert family.processor is not None
    return family.processor
