"""Preprocess images for the vision tower: square, with every channel in [-1, 1].

Source: huggingface/transformers models/siglip/image_processing_pil_siglip.py (PaliGemma) and
models/gemma3/image_processing_pil_gemma3.py (Gemma 3), whose results are reproduced bit by bit.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_LEVELS = ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


def resize_square(image: NDArray[np.uint8], size: int, resample: Literal["bilinear", "bicubic"]) -> NDArray[np.float32]:
    """Resize an image to a square, ignoring its aspect ratio, and scale its values.

    transformers uses "bicubic" for PaliGemma and "bilinear" for Gemma 3, both with antialiasing. PaliGemma's own code
    uses bilinear, with or without antialiasing (google-research/big_vision big_vision/pp/ops_image.py).

    Args:
        image: [height, width, 3].
        size: Width and height of the result in pixels.
        resample: Interpolation.

    Returns:
        [size, size, 3] in [-1, 1].
    """
    from PIL import Image

    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return _LEVELS[np.asarray(Image.fromarray(image).resize((size, size), filters[resample]))]


def pan_and_scan(
    image: NDArray[np.uint8], *, min_ratio: float = 1.2, min_crop: int = 256, max_crops: int = 4
) -> list[NDArray[np.uint8]]:
    """Cut an elongated image into crops along its longer side, which Gemma 3 can take in addition to the whole image.

    Args:
        image: [height, width, 3].
        min_ratio: Minimum ratio of longer to shorter side of an image that is cut (1.5 in google/gemma_pytorch).
        min_crop: Minimum shorter side of a crop in pixels.
        max_crops: Maximum number of crops.

    Returns:
        Views of the crops, left to right or top to bottom; empty if the image is too small or not elongated.
    """
    height, width, _ = image.shape
    axis = 1 if width >= height else 0
    long, short = max(height, width), min(height, width)
    if long / short < min_ratio:
        return []
    count = min(math.floor(long / short + 0.5), long // min_crop)
    count = min(max(count, 2), max_crops)
    length = math.ceil(long / count)
    if min(length, short) < min_crop:
        return []
    return np.split(image, range(length, length * count, length), axis)
