"""Draws what a model found onto its picture: boxes, labels and half-transparent masks."""

import colorsys
import math
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

Colour = tuple[int, int, int]

_LONGEST: Final = 120  # characters of a label; more never fit
_FILL, _OUTLINE, _SHADOW = 105, 235, 120  # opacity of a mask, of its edge, and of the shadow around a box; of 255
_DARK, _WHITE = (18, 18, 22), (255, 255, 255)


class _Area(NamedTuple):
    """Pixels of a picture; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def draw(
    image: NDArray[np.uint8], found: Sequence[Found], masks: Iterable[NDArray[np.bool_] | None] = ()
) -> NDArray[np.uint8]:
    """Draws every object in a colour of its own; lines and letters grow with the picture.

    Args:
        image: [height, width, 3], red, green and blue; it is left as it is.
        found: The objects. A label is cut where it would leave the picture, left out where it would cover more than
            a third of its height, and shows a hollow box for each sign that Pillow's own (Latin) font lacks.
        masks: [height, width] of each object in the same order, as `place` makes them, None for those without.
            Taken one by one, so a generator saves memory; it may end early.

    Returns:
        [height, width, 3].
    """
    from PIL import Image, ImageFont

    canvas = Image.fromarray(image)
    scale = math.sqrt(canvas.width * canvas.height)
    line = max(1, round(scale / 220))
    font = ImageFont.load_default(max(12, min(round(scale / 34), canvas.height // 5)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # as it is whenever a size is given
    colours = [_colour(index) for index in range(len(found))]
    areas = [_area(item.box, canvas) for item in found]
    for colour, mask in zip(colours, masks, strict=False):
        if mask is not None:
            _draw_mask(canvas, mask, colour, line)
    _draw_boxes(canvas, areas, colours, line)
    _draw_labels(canvas, [item.label for item in found], areas, colours, font)
    return np.asarray(canvas).copy()


def save_png(image: NDArray[np.uint8], path: str | Path) -> None:
    """Writes a picture as PNG, whatever the file is called; it is there whole or not at all.

    Args:
        image: [height, width, 3].
        path: The file to make or replace.

    Raises:
        GemwrightError: The place cannot be written.
    """
    from PIL import Image

    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        try:
            Image.fromarray(image).save(partial, "PNG")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise GemwrightError(f"{path} cannot be written ({error.strerror or error}): choose another place.") from error


def _colour(index: int) -> Colour:
    """Neighbours in the list differ most: each hue is a golden angle from the one before."""
    red, green, blue = colorsys.hls_to_rgb((0.94 + index * 0.381966) % 1, 0.60, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _ink(colour: Colour) -> Colour:
    """Dark or white, whichever reads better on a colour."""
    red, green, blue = ((part / 255) ** 2.2 for part in colour)
    return _DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.25 else _WHITE


def _area(box: Box, canvas: "Image") -> _Area:
    """A box in pixels, at least one of them."""
    top, left, bottom, right = box.pixels(canvas.height, canvas.width)
    top, left = min(top, canvas.height - 1), min(left, canvas.width - 1)
    return _Area(left, top, max(right, left + 1), max(bottom, top + 1))


def _draw_mask(canvas: "Image", mask: NDArray[np.bool_], colour: Colour, line: int) -> None:
    """Tints the inside of a mask and draws its edge, softened so that it shows no stairs."""
    from PIL import Image, ImageFilter

    whole = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    bounds = whole.getbbox()
    if bounds is None:
        return
    left, top, right, bottom = (side + margin for side, margin in zip(bounds, (-line, -line, line, line), strict=True))
    inside = whole.crop((left, top, right, bottom))
    deep = np.asarray(inside.filter(ImageFilter.BoxBlur(line)))
    opacity = np.where(np.asarray(inside) == 0, 0, np.where(deep == 255, _FILL, _OUTLINE)).astype(np.uint8)
    canvas.paste(colour, (left, top), Image.fromarray(opacity).filter(ImageFilter.GaussianBlur(max(0.6, line / 3))))


def _draw_boxes(canvas: "Image", areas: Sequence[_Area], colours: Sequence[Colour], line: int) -> None:
    """Frames in their colours, all of them over a shadow that sets them off from a picture of the same colour."""
    from PIL import Image, ImageDraw

    shadow = Image.new("L", canvas.size)
    margin = max(1, line // 2)
    pen = ImageDraw.Draw(shadow)
    for left, top, right, bottom in areas:
        outer = (left - margin, top - margin, right - 1 + margin, bottom - 1 + margin)
        pen.rectangle(outer, outline=_SHADOW, width=line + 2 * margin)
    canvas.paste(_DARK, (0, 0), shadow)
    pen = ImageDraw.Draw(canvas)
    for (left, top, right, bottom), colour in zip(areas, colours, strict=True):
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)


def _draw_labels(
    canvas: "Image", labels: Sequence[str], areas: Sequence[_Area], colours: Sequence[Colour], font: "FreeTypeFont"
) -> None:
    """Each label on a tag at its box, where no other tag is if that can be had."""
    taken = np.zeros((canvas.height, canvas.width), np.bool_)
    for label, area, colour in zip(labels, areas, colours, strict=True):
        tag = _tag(label, colour, font, canvas.width)
        if tag is not None and 3 * tag.height <= canvas.height:
            left, top = _corner(tag, area, taken)
            canvas.paste(tag, (left, top), tag)
            taken[top : top + tag.height, left : left + tag.width] = True


def _tag(label: str, colour: Colour, font: "FreeTypeFont", widest: int) -> "Image | None":
    """A label on a filled tag with round corners, or None without one that can be written."""
    from PIL import Image, ImageDraw

    height, margin, baseline = (round(share * font.size) for share in (1.36, 0.45, 1.03))
    text = _fitting(label, font, widest - 2 * margin)
    if not text:
        return None
    size = (math.ceil(font.getlength(text)) + 2 * margin, height)
    fine = 4  # Pillow draws round corners without shades, so they are drawn larger and shrunk
    shape = Image.new("L", (size[0] * fine, size[1] * fine))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, shape.width - 1, shape.height - 1), height * fine // 5, fill=255)
    tag = Image.new("RGB", size, colour)
    ImageDraw.Draw(tag).text((margin, baseline), text, _ink(colour), font, anchor="ls")
    tag.putalpha(shape.reduce(fine))
    return tag


def _fitting(label: str, font: "FreeTypeFont", widest: int) -> str:
    """As much of a label as fits, without what has no shape: control characters, broken surrogates, line ends."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in label[:_LONGEST]).split())
    if len(label) <= _LONGEST and font.getlength(text) <= widest:
        return text
    length = bisect(range(len(text) + 1), widest, key=lambda length: font.getlength(f"{text[:length]}…")) - 1
    return f"{text[:length].rstrip()}…" if length > 0 else ""


def _corner(tag: "Image", area: _Area, taken: NDArray[np.bool_]) -> tuple[int, int]:
    """Where a tag goes: on top of its box, else inside, beneath or further down, never over the picture's edge.

    Returns:
        (left, top)
    """
    height, width = taken.shape
    left, lowest = max(0, min(area.left, width - tag.width)), height - tag.height
    tops = (area.top - tag.height, area.top, area.bottom, *range(area.top, lowest, tag.height))
    within = (top for top in tops if 0 <= top <= lowest)
    free = (top for top in within if not taken[top : top + tag.height, left : left + tag.width].any())
    return left, next(free, min(area.top, lowest))
