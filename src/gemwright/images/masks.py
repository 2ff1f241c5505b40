"""Masks of objects: the decoder of PaliGemma's 16 mask codes.

Layers and weights: google-research/big_vision `evaluators/proj/paligemma/transfers/segmentation.py`; the network is
the mask VQ-VAE of Ning et al., "All in Tokens" (2023), https://arxiv.org/abs/2301.02229. Published as
`gs://big_vision/paligemma/vae-oid.npz`. Activations are [height, width, channels].
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.npz import open_npz
from gemwright.errors import CheckpointError, GemwrightError
from gemwright.images.locations import CODEBOOK, MASK_CODES, Box, Found, is_mask

SIDE: Final = 64
"""Width and height of a decoded mask in pixels."""
_GRID = 4  # codes per row and column

# torch's layouts: a convolution's kernel is [out, in, height, width], a transposed one's [in, out, height, width].
_CONVOLUTIONS = {
    "decoder.0": (128, 512, 1, 1),
    **{f"decoder.{block}.net.{layer}": (128, 128, k, k) for block in (2, 3) for layer, k in ((0, 3), (2, 3), (4, 1))},
    "decoder.12": (1, 16, 1, 1),
}
_TRANSPOSED = {
    "decoder.4": (128, 128, 4, 4),
    "decoder.6": (128, 64, 4, 4),
    "decoder.8": (64, 32, 4, 4),
    "decoder.10": (32, 16, 4, 4),
}
_CODEBOOK = "_vq_vae._embedding"
LAYOUT: Final[Mapping[str, tuple[int, ...]]] = {
    _CODEBOOK: (CODEBOOK, 512),
    **{f"{name}.weight": shape for name, shape in (_CONVOLUTIONS | _TRANSPOSED).items()},
    **{f"{name}.bias": shape[:1] for name, shape in _CONVOLUTIONS.items()},
    **{f"{name}.bias": shape[1:2] for name, shape in _TRANSPOSED.items()},
}
"""Name and shape of every array of the decoder."""


@final
@dataclass(frozen=True, eq=False)
class MaskDecoder:
    """A network that decodes masks.

    Attributes:
        arrays: Weights, named and shaped as in `LAYOUT`.
    """

    arrays: Mapping[str, NDArray[np.float32]]

    @classmethod
    def load(cls, path: str | Path) -> "MaskDecoder":
        """Load the published `vae-oid.npz`; its encoder is skipped.

        Raises:
            CheckpointError: The file is not an .npz file, or an array is missing, damaged or of another shape.
        """
        file = open_npz(path, LAYOUT)
        for name, shape in LAYOUT.items():
            found = file.tensors.get(name)
            if found is None or found.shape != shape:
                problem = "is missing" if found is None else f"has shape {list(found.shape)}, not {list(shape)}"
                raise CheckpointError(f"{path}: array {name} {problem}; use the published vae-oid.npz.")
        return cls({name: file.read(name).astype(np.float32) for name in LAYOUT})

    def decode(self, codes: tuple[int, ...]) -> NDArray[np.float32]:
        """Decode a mask.

        Args:
            codes: `Found.mask_codes`: a 4 x 4 grid in row-major order.

        Returns:
            [64, 64], about -1 (outside) to 1 (inside); `place` resizes it to the object's box.

        Raises:
            GemwrightError: Not 16 codes below 128.
        """
        if not is_mask(codes):
            raise GemwrightError(f"A mask has {MASK_CODES} codes from 0 to {CODEBOOK - 1}, not {str(codes)[:80]}.")
        x = self.arrays[_CODEBOOK][np.array(codes)].reshape(_GRID, _GRID, -1)
        x = _relu(self._convolve("decoder.0", x))
        for block in ("decoder.2.net", "decoder.3.net"):
            inner = _relu(self._convolve(f"{block}.0", x))
            inner = _relu(self._convolve(f"{block}.2", inner))
            x = x + self._convolve(f"{block}.4", inner)
        for name in _TRANSPOSED:
            x = _relu(self._upsample(name, x))
        return self._convolve("decoder.12", x)[..., 0]

    def _convolve(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply a convolution that keeps height and width."""
        kernel = self.arrays[f"{name}.weight"]
        margin = kernel.shape[-1] // 2
        padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
        return _correlate(padded, kernel) + self.arrays[f"{name}.bias"]

    def _upsample(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply a transposed convolution of width 4, stride 2 and padding 1, which doubles height and width."""
        height, width, channels = x.shape
        spread = np.zeros((2 * height + 3, 2 * width + 3, channels), np.float32)
        spread[2:-2:2, 2:-2:2] = x
        kernel = self.arrays[f"{name}.weight"].swapaxes(0, 1)[..., ::-1, ::-1]
        return _correlate(spread, kernel) + self.arrays[f"{name}.bias"]


def place(mask: NDArray[np.float32], box: Box, height: int, width: int) -> NDArray[np.bool_]:
    """Resize a decoded mask to its box, as in PaliGemma's evaluation.

    Args:
        mask: [64, 64], positive inside the object.
        box: Box of the object.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        [height, width], True inside the object: the mask after bilinear (antialiased) resizing is above 0.
    """
    from PIL import Image

    placed = np.zeros((height, width), np.bool_)
    top, left, bottom, right = box.pixels(height, width)
    if top < bottom and left < right:
        resized = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        placed[top:bottom, left:right] = np.asarray(resized) > 0
    return placed


def place_masks(
    decoder: MaskDecoder | None, found: Sequence[Found], height: int, width: int
) -> Iterator[NDArray[np.bool_] | None]:
    """Yield the mask [height, width] of each object, or None; one at a time, as each is as large as the image."""
    for item in found:
        if decoder is None or item.mask_codes is None:
            yield None
        else:
            yield place(decoder.decode(item.mask_codes), item.box, height, width)


def _correlate(x: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cross-correlate `x` with a kernel [out, in, height, width], without padding."""
    outputs, _, rows, columns = kernel.shape
    height, width = x.shape[0] - rows + 1, x.shape[1] - columns + 1
    total = np.zeros((height, width, outputs), np.float32)
    for row, column in np.ndindex(rows, columns):
        total += x[row : row + height, column : column + width] @ kernel[:, :, row, column].T
    return total


def _relu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(x, 0)
