"""Pictures as RGB arrays. What comes in is not trusted: sizes are checked before decoding, and nothing is fetched."""

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
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of Pillow's, those that no program has to be run for

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_BITS, _PHOTOMETRIC, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 258, 262, 274, 322, 323  # TIFF's tags, and EXIF's

# Pillow's readers let out whatever parsing broken bytes happens to raise.
_BROKEN = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error
)  # fmt: skip


def load_image(source: "str | Path | bytes | Image.Image | NDArray[np.uint8]") -> NDArray[np.uint8]:
    """Reads a picture: the first frame, turned as its EXIF data says, over white where it is transparent.

    Values of 16 bits become their high bytes. Colour profiles are not applied.

    Args:
        source: A file or the bytes of one (PNG, JPEG, WebP, GIF, BMP or TIFF), a Pillow image, or the array itself.

    Returns:
        Red, green and blue [height, width, 3]. An array comes back as it is; a Pillow image stays open.

    Raises:
        GemwrightError: There is no such picture, or it is broken, has more than 100 megapixels, or holds values that
            have no certain black and white.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _checked(source)
    if isinstance(source, Image.Image):
        with _one_sentence("The picture"):
            return _pixels(source, "The picture")
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), f"The picture of {len(source)} bytes")
    name = _shown(str(source))
    with _opened(source, name) as file:
        return _read(file, name)


def _checked(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise GemwrightError(
            f"The picture is an array of {array.dtype} {list(array.shape)}: give uint8 [height, width, 3] in RGB."
        )
    return array


def _shown(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}…"


def _opened(source: str | Path, name: str) -> BinaryIO:
    if isinstance(source, str) and _ADDRESS.match(source):
        raise GemwrightError(f"{name} is an address, and nothing is fetched: save the picture to a file first.")
    path = Path(source)
    try:
        if path.is_file():
            return path.open("rb")
        exists = path.exists()
    except OSError as error:
        raise GemwrightError(f"{name} cannot be opened ({error.strerror}): give a picture file.") from error
    raise GemwrightError(f"{name} {'is not a file' if exists else 'does not exist'}: give a picture file.")


def _read(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    from PIL import Image

    with _one_sentence(name), Image.open(file, formats=FORMATS) as image:
        return _pixels(image, name)


@contextmanager
def _one_sentence(name: str) -> Generator[None]:
    """Quietens Pillow's warnings, and makes one sentence of whatever it raises."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except GemwrightError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise GemwrightError(
            f"{name} is empty, broken or of another kind: give a PNG, JPEG, WebP, GIF, BMP or TIFF picture."
        ) from error
    except _BROKEN as error:
        raise GemwrightError(f"{name} is cut off or broken ({error}): get the picture again.") from error


def _too_large(name: str) -> GemwrightError:
    return GemwrightError(f"{name} has more than {MAX_PIXELS // 1_000_000} megapixels: make it smaller first.")


def _pixels(image: "Image.Image", name: str) -> NDArray[np.uint8]:
    from PIL import Image

    _check_size(image, name)
    image.load()
    turn = _turn(image)
    image = _in_bytes(image, name)
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow knows no direct way from here to RGBA
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image if turn is None else image.transpose(turn))


def _check_size(image: "Image.Image", name: str) -> None:
    """Refuses from the header alone. A TIFF's tile is decoded whole, however little of it the picture shows."""
    tags = _tiff_tags(image)
    tile = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1)
    for width, height in (image.size, tile):
        if not width * height:
            raise GemwrightError(f"{name} has no pixels: give another picture.")
        if width * height > MAX_PIXELS:
            raise _too_large(name)


def _tiff_tags(image: "Image.Image") -> Mapping[int, Any]:
    from PIL import TiffImagePlugin

    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _turn(image: "Image.Image") -> "Image.Transpose | None":
    """What brings a loaded picture upright. Broken EXIF data does not make a picture unreadable."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:
        return None


def _in_bytes(image: "Image.Image", name: str) -> "Image.Image":
    """The picture in a mode of 8 bits; Pillow itself would clip 16 bits to 255."""
    from PIL import Image

    sixteen = image.mode.startswith("I;16")
    if sixteen and _tiff_tags(image):  # 12 bits, and white as 0, come out of Pillow unscaled and not inverted
        tags = _tiff_tags(image)
        sixteen = tags.get(_BITS) == (16,) and tags.get(_PHOTOMETRIC) == 1
    if sixteen:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise GemwrightError(f"{name} has values of unknown black and white: save it with 8 bits a channel first.")
    return image
