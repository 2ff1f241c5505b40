"""Build prompts with image soft tokens: ids with placeholders, and the embeddings that replace them."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.families import ImagePrompt, Resample
from gemwright.generate.prompts import Prompt
from gemwright.images.preprocess import resize_square
from gemwright.model.config import Vision
from gemwright.model.params import VisionWeights
from gemwright.model.vision import encode
from gemwright.text.image_format import ImageFormat
from gemwright.text.tokenizer import Tokenizer

Image: TypeAlias = NDArray[np.uint8]
"""Pixels [height, width, 3]."""
Embeddings: TypeAlias = NDArray[np.float32]
"""Soft tokens [tokens, D]."""
MAX_CACHED_IMAGES = 32
"""Number of images whose soft tokens are cached."""


@dataclass(frozen=True)
class ImagePrompter:
    """A vision tower and how its model's prompts contain images.

    Attributes:
        vision: Config of the tower.
        params: Weights of the tower, on the device.
        style: How images are part of a prompt.
        resample: How images are resized to the tower's size.
        tokenizer: Tokenizer of the model.
        cache: Soft tokens of the latest images by digest of the pixels: each turn of a conversation repeats its images.
    """

    vision: Vision
    params: VisionWeights
    style: ImagePrompt
    resample: Resample
    tokenizer: Tokenizer
    cache: dict[bytes, Embeddings] = field(default_factory=dict[bytes, Embeddings])
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def format(self) -> ImageFormat:
        """How images are part of the ids of a prompt."""
        return ImageFormat(self.style, self.vision.tokens, self.tokenizer)

    def before(self, text: str, images: Sequence[Sequence[Image]]) -> Prompt:
        """Return the prompt of a text after images, each of which may be followed by its crops; see `ImageFormat`.

        Raises:
            GemwrightError: The text has another number of markers of images, or not at its front.
        """
        ids = self.format.encode(text, [len(views) for views in images])
        return self.prompt(ids, [view for views in images for view in views])

    def insertion(self, views: Sequence[Image]) -> list[int]:
        """Return the ids of an image and its crops in a text."""
        return self.format.insertion(len(views))

    def prompt(self, ids: Sequence[int], images: Sequence[Image]) -> Prompt:
        """Return a prompt of ids with placeholders and the images, crops included, that replace them in order."""
        return Prompt(ids, self._embed_all(images), self.format.groups(ids))

    def filled(self, length: int) -> Prompt:
        """Return a prompt of so many tokens of text, with the groups that a prompt with images has."""
        return Prompt(
            [self.tokenizer.bos_id] * length,
            np.zeros((0, self.params.project.shape[0]), np.float32),
            np.full(length, 0 if self.style == "prefix" else -1, np.int32),
        )

    def _embed_all(self, images: Sequence[Image]) -> Embeddings:
        """Return the soft tokens [images * tokens, D]."""
        none = np.zeros((0, self.params.project.shape[0]), np.float32)
        return np.concatenate([none, *map(self._embed, images)])

    def _embed(self, image: Image) -> Embeddings:
        """Return the soft tokens [tokens, D] of one image, so that one compiled program serves any number."""
        pixels = resize_square(image, self.vision.image_size, self.resample)
        digest = hashlib.blake2b(pixels.tobytes()).digest()
        with self._lock:  # a server encodes images in several threads
            found = self.cache.get(digest)
            if found is None:
                if len(self.cache) >= MAX_CACHED_IMAGES:
                    del self.cache[next(iter(self.cache))]
                soft_tokens = encode(self.vision, self.params, jnp.asarray(pixels)[None])[0]
                self.cache[digest] = found = np.asarray(soft_tokens, np.float32)
        return found
