"""How a model with a tower sees: pictures become rows of a prompt, and ids that say where they stand."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.generate.prompts import SOFT_TOKEN, Prompt
from gemwright.images.preprocess import resize_square
from gemwright.model.config import Vision
from gemwright.model.params import VisionWeights
from gemwright.model.vision import encode
from gemwright.text.tokenizer import Tokenizer

Picture = NDArray[np.uint8]
Rows = NDArray[np.float32]
MAX_CACHED_IMAGES = 32
"""Pictures whose rows are kept."""


@dataclass(frozen=True)
class ImagePrompter:
    """A tower, and how its model's prompts hold what it sees.

    Attributes:
        vision: The tower.
        params: Its weights, on the device.
        resample: How pictures are brought to its size.
        tokenizer: The model's.
        cache: What was seen last, by the pixels' digest: a conversation shows its pictures at every turn.
    """

    vision: Vision
    params: VisionWeights
    resample: Literal["bilinear", "bicubic"]
    tokenizer: Tokenizer
    cache: dict[bytes, Rows] = field(default_factory=dict[bytes, Rows])

    def before(self, text: str, pictures: Sequence[Sequence[Picture]]) -> Prompt:
        """A text behind pictures, each of which may have crops after it.

        PaliGemma takes the rows of all pictures, BOS, the text, and a newline that is encoded by itself
        (google-research/big_vision `models/proj/paligemma`).
        """
        tokenizer, shown = self.tokenizer, [view for views in pictures for view in views]
        if self.vision.prefix_lm:
            rows, asked = [SOFT_TOKEN] * (len(shown) * self.vision.tokens), tokenizer.with_bos(tokenizer.encode(text))
            return self.prompt([*rows, *asked, *tokenizer.encode("\n")], shown)
        inserted = [token for views in pictures for token in self.insertion(views)]
        return self.prompt(tokenizer.with_bos([*inserted, *tokenizer.encode(text)]), shown)

    def insertion(self, views: Sequence[Picture]) -> list[int]:
        """What stands for a picture and its crops in Gemma 3's text: their rows between markers and empty lines.

        The words around crops are those of transformers. The empty lines are ids of their own, as in
        google-deepmind/gemma `gm/vision`; transformers lets them merge with newlines beside them.
        """
        tokenizer = self.tokenizer
        start, end = tokenizer.id_of("<start_of_image>"), tokenizer.id_of("<end_of_image>")
        lines = tokenizer.encode("\n\n")
        one = [*lines, start, *[SOFT_TOKEN] * self.vision.tokens, end, *lines]
        if len(views) == 1:
            return one
        here, more = "Here is the original image ", " and here are some crops to help you see better"
        rest = [token for _ in views[1:] for token in (*tokenizer.encode(" "), *one)]
        return [*tokenizer.encode(here), *one, *tokenizer.encode(more), *rest]

    def prompt(self, ids: Sequence[int], pictures: Sequence[Picture]) -> Prompt:
        """Ids with the rows of the pictures, crops included, that they make room for."""
        groups = np.full(len(ids), 0 if self.vision.prefix_lm else -1, np.int32)
        if not self.vision.prefix_lm:
            rows = np.flatnonzero(np.asarray(ids) == SOFT_TOKEN)
            groups[rows] = np.arange(len(rows)) // self.vision.tokens
        return Prompt(ids, self._rows(pictures), groups)

    def _rows(self, pictures: Sequence[Picture]) -> Rows:
        """[pictures * tokens, D]."""
        none = np.zeros((0, self.params.project.shape[0]), np.float32)
        return np.concatenate([none, *map(self._see, pictures)])

    def _see(self, picture: Picture) -> Rows:
        """[tokens, D]. One picture at a time, so that one program serves any number."""
        pixels = resize_square(picture, self.vision.image_size, self.resample)
        digest = hashlib.blake2b(pixels.tobytes()).digest()
        if digest not in self.cache:
            if len(self.cache) >= MAX_CACHED_IMAGES:
                del self.cache[next(iter(self.cache))]
            rows = encode(self.vision, self.params, jnp.asarray(pixels)[None])[0]
            self.cache[digest] = np.asarray(rows, np.float32)
        return self.cache[digest]
