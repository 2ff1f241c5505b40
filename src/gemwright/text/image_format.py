"""How the prompts of a model contain images: the ids of soft tokens, and which ids attend to each other both ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError
from gemwright.families import ImagePrompt
from gemwright.text.tokenizer import Tokenizer

SOFT_TOKEN = -1
"""The id of a soft token, whose embedding comes from an image."""
MARKERS: Mapping[ImagePrompt, str] = {"prefix": "<image>", "inline": "<start_of_image>"}
"""Names of the marker of an image in a text."""


@dataclass(frozen=True)
class ImageFormat:
    """How images are part of the ids of a prompt.

    Attributes:
        style: Before the text, or in it.
        soft_tokens: Number of soft tokens of an image.
        tokenizer: Tokenizer of the model.
    """

    style: ImagePrompt
    soft_tokens: int
    tokenizer: Tokenizer

    def encode(self, text: str, views: Sequence[int]) -> list[int]:
        """Return the ids of a text after images.

        A `prefix` prompt is the soft tokens of all images, BOS, the text, and a newline that is encoded separately
        (google-research/big_vision `models/proj/paligemma`).

        Markers of the images, and BOS, may be written at the front of the text, as processors of transformers read it.

        Args:
            text: The text.
            views: Number of views of each image: itself, and any crops of it.

        Raises:
            GemwrightError: The text has another number of markers, or not at its front.
        """
        tokenizer, text = self.tokenizer, self._strip_markers(text, len(views))
        if self.style == "prefix":
            prefix = tokenizer.with_bos(tokenizer.encode(text.removesuffix("\n")))
            return [*[SOFT_TOKEN] * (sum(views) * self.soft_tokens), *prefix, *tokenizer.encode("\n")]
        inserted = [token for count in views for token in self.insertion(count)]
        return tokenizer.with_bos([*inserted, *tokenizer.encode(text)])

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

    def insertion(self, views: int) -> list[int]:
        """Return the ids of an image and its crops in a Gemma 3 text: soft tokens between markers and empty lines.

        The words around crops are those of transformers. Empty lines are separate ids, as in google-deepmind/gemma
        `gm/vision`; transformers lets them merge with adjacent newlines.
        """
        tokenizer = self.tokenizer
        start, end = tokenizer.id_of(MARKERS["inline"]), tokenizer.id_of("<end_of_image>")
        empty_line = tokenizer.encode("\n\n")
        one = [*empty_line, start, *[SOFT_TOKEN] * self.soft_tokens, end, *empty_line]
        if views == 1:
            return one
        whole, crops = "Here is the original image ", " and here are some crops to help you see better"
        rest = [token for _ in range(views - 1) for token in (*tokenizer.encode(" "), *one)]
        return [*tokenizer.encode(whole), *one, *tokenizer.encode(crops), *rest]

    def groups(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """Return the group of each id of a prompt, as in `model.state.Positions`."""
        groups = np.full(len(ids), 0 if self.style == "prefix" else -1, np.int32)
        if self.style == "inline":
            places = np.flatnonzero(np.asarray(ids) == SOFT_TOKEN)
            groups[places] = np.arange(len(places)) // self.soft_tokens
        return groups
