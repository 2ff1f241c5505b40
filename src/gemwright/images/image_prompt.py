"""Build prompts with image soft tokens: ids with placeholders, and the embeddings that replace them."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError
from gemwright.families import ImagePrompt, Resample
from gemwright.generate.prompts import SOFT_TOKEN, Prompt
from gemwright.images.preprocess import resize_square
from gemwright.model.config import Vision
from gemwright.model.params import VisionWeights
from gemwright.model.vision import encode
from gemwright.text.tokenizer import Tokenizer

Image: TypeAlias = NDArray[np.uint8]
"""Pixels [height, width, 3]."""
Embeddings: TypeAlias = NDArray[np.float32]
"""Soft tokens [tokens, D]."""
MARKERS: Mapping[ImagePrompt, str] = {"prefix": "<image>", "inline": "<start_of_image>"}
"""Names of the marker of an image in a text."""
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

    def before(self, text: str, images: Sequence[Sequence[Image]]) -> Prompt:
        """Return the prompt of a text after images, each of which may be followed by its crops.

        A `prefix` prompt is the soft tokens of all images, BOS, the text, and a newline that is encoded separately
        (google-research/big_vision `models/proj/paligemma`).

        Markers of the images, and BOS, may be written at the front of the text, as processors of transformers read it.

        Raises:
            GemwrightError: The text has another number of markers, or not at its front.
        """
        tokenizer, views = self.tokenizer, [view for views in images for view in views]
        text = self._strip_markers(text, len(images))
        if self.style == "prefix":
            text = text.removesuffix("\n")
            soft = [SOFT_TOKEN] * (len(views) * self.vision.tokens)
            prefix = tokenizer.with_bos(tokenizer.encode(text))
            return self.prompt([*soft, *prefix, *tokenizer.encode("\n")], views)
        inserted = [token for views in images for token in self.insertion(views)]
        return self.prompt(tokenizer.with_bos([*inserted, *tokenizer.encode(text)]), views)

    def _strip_markers(self, text: str, count: int) -> str:
        """Return a text without the markers of images, and BOS after them, at its front."""
        marker = MARKERS[self.style]
        rest, found = text, 0
        while rest.lstrip().startswith(marker):
            rest, found = rest.lstrip().removeprefix(marker), found + 1
        if marker in rest or found not in (0, count):
            found = text.count(marker)
            raise GemwrightError(
                f"The prompt has {found} of {marker} for {count} images; write it once for each image at the "
                "front of the prompt, or leave it out."
            )
        return rest.removeprefix("<bos>") if found else text

    def insertion(self, views: Sequence[Image]) -> list[int]:
        """Return the ids of an image and its crops in a Gemma 3 text: soft tokens between markers and empty lines.

        The words around crops are those of transformers. Empty lines are separate ids, as in google-deepmind/gemma
        `gm/vision`; transformers lets them merge with adjacent newlines.
        """
        tokenizer = self.tokenizer
        start, end = tokenizer.id_of(MARKERS["inline"]), tokenizer.id_of("<end_of_image>")
        empty_line = tokenizer.encode("\n\n")
        one = [*empty_line, start, *[SOFT_TOKEN] * self.vision.tokens, end, *empty_line]
        if len(views) == 1:
            return one
        whole, crops = "Here is the original image ", " and here are some crops to help you see better"
        rest = [token for _ in views[1:] for token in (*tokenizer.encode(" "), *one)]
        return [*tokenizer.encode(whole), *one, *tokenizer.encode(crops), *rest]

    def prompt(self, ids: Sequence[int], images: Sequence[Image]) -> Prompt:
        """Return a prompt of ids with placeholders and the images, crops included, that replace them in order."""
        groups = np.full(len(ids), 0 if self.style == "prefix" else -1, np.int32)
        if self.style == "inline":
            places = np.flatnonzero(np.asarray(ids) == SOFT_TOKEN)
            groups[places] = np.arange(len(places)) // self.vision.tokens
        return Prompt(ids, self._embed_all(images), groups)

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
