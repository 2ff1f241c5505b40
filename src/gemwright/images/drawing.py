"""Draw detected objects on an image: boxes, labels and translucent masks."""

import colorsys
import math
import os
from bisect import bisect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError
from gemwright.images.locations import Box, Found

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Color = tuple[int, int, int]
_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_MAX_LABEL: Final = 120  # characters; longer labels never fit
_FILL, _OUTLINE, _SHADOW = 105, 235, 120  # opacity, of 255, of a mask, of its edge, and of the shadow around a box
_DARK, _WHITE = (18, 18, 22), (255, 255, 255)


class _Area(NamedTuple):
    """A rectangle in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def draw(
    image: NDArray[np.uint8], found: Sequence[Found], masks: Iterable[NDArray[np.bool_] | None] = ()
) -> NDArray[np.uint8]:
    """Draw every object in its own color; lines and letters scale with the image.

    Args:
        image: [height, width, 3] RGB, not modified.
        found: Objects. A label is shortened to the image's width and omitted if it would cover more than a third of the
            image's height; characters that Pillow's own (Latin) font lacks become hollow boxes.
        masks: [height, width] of each object in the same order, from `place`, or None. Consumed one at a time, so a
            generator saves memory; may be shorter than `found`.

    Returns:
        [height, width, 3] RGB.
    """
    from PIL import Image, ImageFont

    canvas = Image.fromarray(image)
    scale = math.sqrt(canvas.width * canvas.height)
    line = max(1, round(scale / 220))
    font = ImageFont.load_default(max(12, min(round(scale / 34), canvas.height // 5)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # always, if a size is given
    colors = [_choose_color(index) for index in range(len(found))]
    areas = [_to_area(item.box, canvas) for item in found]
    for color, mask in zip(colors, masks, strict=False):
        if mask is not None:
            _draw_mask(canvas, mask, color, line)
    _draw_boxes(canvas, areas, colors, line)
    _draw_labels(canvas, [item.label for item in found], areas, colors, font)
    return np.asarray(canvas).copy()


def image_format(path: str | Path) -> str:
    """Return Pillow's name of the format in which `save_image` writes a file, by its suffix.

    Raises:
        GemwrightError: The suffix is not supported.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise GemwrightError(f"{path} cannot be written as an image; use a name that ends in {', '.join(_FORMATS)}.")
    return _FORMATS[suffix]


def save_image(image: NDArray[np.uint8], path: str | Path) -> None:
    """Write an image in the format of its suffix.

    Args:
        image: [height, width, 3].
        path: File to create or replace.

    Raises:
        GemwrightError: The suffix is not supported, or the file cannot be written.
    """
    _save(image, Path(path), image_format(path))


def save_png(image: NDArray[np.uint8], path: str | Path) -> None:
    """Write an image as PNG, whatever its file name.

    Args:
        image: [height, width, 3].
        path: File to create or replace.

    Raises:
        GemwrightError: The file cannot be written.
    """
    _save(image, Path(path), "PNG")


def _save(image: NDArray[np.uint8], path: Path, file_format: str) -> None:
    """Write an image; an incomplete file is never left behind, and no other file is touched."""
    from PIL import Image

    partial = path.with_name(f"gemwright-{os.urandom(8).hex()}.partial")
    try:
        try:
            Image.fromarray(image).save(partial, file_format, quality=95)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise GemwrightError(f"{path} cannot be written ({error.strerror or error}): choose another path.") from error


def _choose_color(index: int) -> Color:
    """Return the color of an object; hues are a golden angle apart, so that neighbors differ most."""
    red, green, blue = colorsys.hls_to_rgb((0.94 + index * 0.381966) % 1, 0.60, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _choose_ink(color: Color) -> Color:
    """Return dark or white, whichever is more legible on a color."""
    red, green, blue = ((part / 255) ** 2.2 for part in color)
    return _DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.25 else _WHITE


def _to_area(box: Box, canvas: "Image") -> _Area:
    """Convert a box to pixels, at least one."""
    top, left, bottom, right = box.pixels(canvas.height, canvas.width)
    top, left = min(top, canvas.height - 1), min(left, canvas.width - 1)
    return _Area(left, top, max(right, left + 1), max(bottom, top + 1))


def _draw_mask(canvas: "Image", mask: NDArray[np.bool_], color: Color, line: int) -> None:
    """Tint the inside of a mask and draw its edge, smoothed against aliasing."""
    from PIL import Image, ImageFilter

    whole = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    bounds = whole.getbbox()
    if bounds is None:
        return
    left, top, right, bottom = (side + margin for side, margin in zip(bounds, (-line, -line, line, line), strict=True))
    inside = whole.crop((left, top, right, bottom))
    deep = np.asarray(inside.filter(ImageFilter.BoxBlur(line)))
    opacity = np.where(np.asarray(inside) == 0, 0, np.where(deep == 255, _FILL, _OUTLINE)).astype(np.uint8)
    canvas.paste(color, (left, top), Image.fromarray(opacity).filter(ImageFilter.GaussianBlur(max(0.6, line / 3))))


def _draw_boxes(canvas: "Image", areas: Sequence[_Area], colors: Sequence[Color], line: int) -> None:
    """Draw frames over a shadow that separates them from an image of the same color."""
    from PIL import Image, ImageDraw

    shadow = Image.new("L", canvas.size)
    margin = max(1, line // 2)
    pen = ImageDraw.Draw(shadow)
    for left, top, right, bottom in areas:
        outer = (left - margin, top - margin, right - 1 + margin, bottom - 1 + margin)
        pen.rectangle(outer, outline=_SHADOW, width=line + 2 * margin)
    canvas.paste(_DARK, (0, 0), shadow)
    pen = ImageDraw.Draw(canvas)
    for (left, top, right, bottom), color in zip(areas, colors, strict=True):
        pen.rectangle((left, top, right - 1, bottom - 1), outline=color, width=line)


def _draw_labels(
    canvas: "Image", labels: Sequence[str], areas: Sequence[_Area], colors: Sequence[Color], font: "FreeTypeFont"
) -> None:
    """Draw each label on a tag at its box, off other tags if possible."""
    taken = np.zeros((canvas.height, canvas.width), np.bool_)
    for label, area, color in zip(labels, areas, colors, strict=True):
        tag = _make_tag(label, color, font, canvas.width)
        if tag is not None and 3 * tag.height <= canvas.height:
            left, top = _place_tag(tag, area, taken)
            canvas.paste(tag, (left, top), tag)
            taken[top : top + tag.height, left : left + tag.width] = True


def _make_tag(label: str, color: Color, font: "FreeTypeFont", max_width: int) -> "Image | None":
    """Return a label on a filled tag with round corners, or None if no text fits."""
    from PIL import Image, ImageDraw

    height, margin, baseline = (round(share * font.size) for share in (1.36, 0.45, 1.03))
    text = _shorten(label, font, max_width - 2 * margin)
    if not text:
        return None
    size = (math.ceil(font.getlength(text)) + 2 * margin, height)
    fine = 4  # Pillow does not antialias round corners, so they are drawn larger and reduced
    shape = Image.new("L", (size[0] * fine, size[1] * fine))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, shape.width - 1, shape.height - 1), height * fine // 5, fill=255)
    tag = Image.new("RGB", size, color)
    ImageDraw.Draw(tag).text((margin, baseline), text, _choose_ink(color), font, anchor="ls")
    tag.putalpha(shape.reduce(fine))
    return tag


def _shorten(label: str, font: "FreeTypeFont", max_width: int) -> str:
    """Return as much of a label as fits, without control characters, lone surrogates and line breaks."""
    text = " ".join("".join(c if c.isprintable() else " " for c in label[:_MAX_LABEL]).split())
    if len(label) <= _MAX_LABEL and font.getlength(text) <= max_width:
        return text
    length = bisect(range(len(text) + 1), max_width, key=lambda length: font.getlength(f"{text[:length]}…")) - 1
    return f"{text[:length].rstrip()}…" if length > 0 else ""


def _place_tag(tag: "Image", area: _Area, taken: NDArray[np.bool_]) -> tuple[int, int]:
    """Return (left, top) of a tag: above its box, else inside, below or further down, always within the image."""
    height, width = taken.shape
    left, lowest = max(0, min(area.left, width - tag.width)), height - tag.height
    tops = (area.top - tag.height, area.top, area.bottom, *range(area.top, lowest, tag.height))
    within = (top for top in tops if 0 <= top <= lowest)
    free = (top for top in within if not taken[top : top + tag.height, left : left + tag.width].any())
    return left, next(free, min(area.top, lowest))
