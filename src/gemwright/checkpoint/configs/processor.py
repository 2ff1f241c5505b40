"""What transformers needs beside the weights to prepare pictures: markers, `preprocessor_config.json` and the like.

Settings: the hub's `paligemma-*` and `gemma-3-*`; huggingface/transformers `models/{paligemma,gemma3}/processing_*.py`.
"""

from typing import Any

from gemwright.model.config import Vision
from gemwright.text.vocabulary import Vocabulary

MARKERS = {
    "PaliGemmaProcessor": {"image_token": "<image>"},
    "Gemma3Processor": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
}
"""What the class of a processor calls the markers in a text around and in the place of a picture's rows."""
_BILINEAR, _BICUBIC = 2, 3  # Pillow's numbers


def processor_class(vision: Vision) -> str:
    """The class that prepares pictures for such a model."""
    return "PaliGemmaProcessor" if vision.prefix_lm else "Gemma3Processor"


def missing_markers(vision: Vision, vocabulary: Vocabulary) -> list[str]:
    """Markers that the vocabulary lacks: SentencePiece files do not have the one for a picture's rows."""
    present = set(vocabulary.pieces)
    return [marker for marker in MARKERS[processor_class(vision)].values() if marker not in present]


def marker_ids(vision: Vision, vocabulary: Vocabulary) -> dict[str, int]:
    """ConfigReader of `config.json` for the ids of the markers, `image_token_index` and the like."""
    return {
        f"{name}_index": vocabulary.pieces.index(marker) for name, marker in MARKERS[processor_class(vision)].items()
    }


def tokenizer_keys(vision: Vision) -> dict[str, Any]:
    """More keys of `tokenizer_config.json`."""
    markers = MARKERS[processor_class(vision)]
    return markers | {"extra_special_tokens": markers, "processor_class": processor_class(vision)}


def processor_documents(vision: Vision) -> dict[str, dict[str, Any]]:
    """The files that a processor is made from, by name."""
    image_class = "SiglipImageProcessor" if vision.prefix_lm else "Gemma3ImageProcessor"
    of_processor = {"processor_class": processor_class(vision), "image_seq_length": vision.tokens}
    of_images: dict[str, Any] = {
        "image_processor_type": image_class,
        "do_convert_rgb": None if vision.prefix_lm else True,
        "do_resize": True,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "resample": _BICUBIC if vision.prefix_lm else _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    documents = {"preprocessor_config.json": of_images | of_processor}
    return documents if vision.prefix_lm else documents | {"processor_config.json": of_processor}
