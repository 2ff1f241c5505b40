"""Load images as RGB arrays. Input is untrusted: sizes are checked before decoding, and nothing is downloaded."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
"""Maximum image size in pixels."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow formats that need no external program."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_BITS, _PHOTOMETRIC, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 258, 262, 274, 322, 323  # TIFF and EXIF tags

# Pillow's readers raise any of these on damaged files.
_PILLOW_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error
)  # fmt: skip


def load_image(source: "str | Path | bytes | Image.Image | NDArray[np.uint8]") -> NDArray[np.uint8]:
    """Load an image: its first frame, oriented by its EXIF data, with transparency composited on white.

    16-bit values are reduced to their high bytes. Color profiles are not applied.

    Args:
        source: A path or the content of a file (PNG, JPEG, WebP, GIF, BMP or TIFF), a Pillow image, or an array.

    Returns:
        RGB [height, width, 3]. An array is returned unchanged; a Pillow image stays open.

    Raises:
        GemwrightError: The image does not exist, is damaged, has over 100 megapixels, or has values of unknown range.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _check_array(source)
    if isinstance(source, Image.Image):
        with _translate_errors("The image"):
            return _decode_pixels(source, "The image")
    if isinstance(source, bytes):
        return _load(io.BytesIO(source), f"The image of {len(source)} bytes")
    name = _shorten(str(source))
    with _open(source, name) as file:
        return _load(file, name)


def count_pixels(content: bytes) -> int:
    """Return how many pixels the decoder of a file holds, by its header alone.

    Raises:
        GemwrightError: It is damaged, empty or of another format.
    """
    from PIL import Image

    name = f"The image of {len(content)} bytes"
    with _translate_errors(name), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return max(_find_sizes(image))


def _check_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise GemwrightError(
            f"The image is an array of {array.dtype} {list(array.shape)}: pass uint8 RGB [height, width, 3]."
        )
    return array


def _shorten(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}…"


def _open(source: str | Path, name: str) -> BinaryIO:
    if isinstance(source, str) and _URL.match(source):
        raise GemwrightError(f"{name} is a URL, and nothing is downloaded: save the image to a file first.")
    path = Path(source)
    try:
        if path.is_file():
            return path.open("rb")
        exists = path.exists()
    except OSError as error:
        raise GemwrightError(f"{name} cannot be opened ({error.strerror}): pass an image file.") from error
    raise GemwrightError(f"{name} {'is not a file' if exists else 'does not exist'}: pass an image file.")


def _load(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    from PIL import Image

    with _translate_errors(name), Image.open(file, formats=FORMATS) as image:
        return _decode_pixels(image, name)


@contextmanager
def _translate_errors(name: str) -> Generator[None]:
    """Suppress Pillow's warnings and convert its exceptions to GemwrightError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except GemwrightError:
        raise
    except Image.DecompressionBombError as error:
        raise _make_size_error(name) from error
    except UnidentifiedImageError as error:
        raise GemwrightError(
            f"{name} is empty, damaged or of another format: pass a PNG, JPEG, WebP, GIF, BMP or TIFF image."
        ) from error
    except _PILLOW_ERRORS as error:
        raise GemwrightError(f"{name} is truncated or damaged ({error}): get the image again.") from error


def _make_size_error(name: str) -> GemwrightError:
    return GemwrightError(f"{name} has more than {MAX_PIXELS // 1_000_000} megapixels: reduce its size.")


def _decode_pixels(image: "Image.Image", name: str) -> NDArray[np.uint8]:
    from PIL import Image

    _check_size(image, name)
    image.load()
    turn = _find_transpose(image)
    image = _convert_to_8_bits(image, name)
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow cannot convert La to RGBA directly
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image if turn is None else image.transpose(turn))


def _check_size(image: "Image.Image", name: str) -> None:
    """Check the size by the header alone."""
    sizes = _find_sizes(image)
    if not all(sizes):
        raise GemwrightError(f"{name} has no pixels: pass another image.")
    if max(sizes) > MAX_PIXELS:
        raise _make_size_error(name)


def _find_sizes(image: "Image.Image") -> tuple[int, int]:
    """Return the pixels of an image and of a tile of it, as a TIFF tile is decoded whole, however little it shows."""
    tags = _read_tiff_tags(image)
    return image.width * image.height, tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_HEIGHT, 1)


def _read_tiff_tags(image: "Image.Image") -> Mapping[int, Any]:
    from PIL import TiffImagePlugin

    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _find_transpose(image: "Image.Image") -> "Image.Transpose | None":
    """Return the transposition that brings a loaded image upright; damaged EXIF data is ignored."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except _PILLOW_ERRORS:
        return None


def _convert_to_8_bits(image: "Image.Image", name: str) -> "Image.Image":
    """Return the image in an 8-bit mode; Pillow itself would clip 16-bit values to 255."""
    from PIL import Image

    sixteen = image.mode.startswith("I;16")
    if sixteen and _read_tiff_tags(image):  # Pillow neither scales 12 bits nor inverts white as 0
        tags = _read_tiff_tags(image)
        sixteen = tags.get(_BITS) == (16,) and tags.get(_PHOTOMETRIC) == 1
    if sixteen:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise GemwrightError(f"{name} has pixel values of unknown range: convert it to 8 bits a channel first.")
    return image
