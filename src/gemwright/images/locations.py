"""Locations in an image as PaliGemma writes them: four `<loc0123>` tags, optionally sixteen `<seg045>` tags, a label.

Source: google-research/big_vision `pp/proj/paligemma/segmentation.py` (bins of 1/1023, order of the corners) and
`evaluators/proj/paligemma/transfers/segmentation.py` (conversion to pixels).
"""

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from gemwright.errors import GemwrightError

BINS: Final = 1024
"""Positions of a coordinate."""
MASK_CODES: Final = 16
"""Codes of a mask."""
CODEBOOK: Final = 128
"""Entries of the codebook of masks."""

_LOC = r"<loc(?:0[0-9]{3}|10[01][0-9]|102[0-3])>"
_SEG = r"<seg(?:0[0-9]{2}|1[01][0-9]|12[0-7])>"
_TAG = re.compile(r"<(?:loc|seg)[0-9]*+>")
_INVALID_TAG = re.compile(rf"(?!{_LOC}|{_SEG}){_TAG.pattern}")
_OBJECT = re.compile(rf"((?:{_LOC}\s*+){{4}})((?:{_SEG}\s*+)*+)")  # possessive, for linear time
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Box:
    """A rectangle in fractions of the image's height (y) and width (x), from the upper left corner."""

    y_min: float
    x_min: float
    y_max: float
    x_max: float

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right) in whole pixels, truncated as in PaliGemma's evaluation.

        Bottom and right are exclusive: `image[top:bottom, left:right]` is the box. It is clipped to the image, and
        empty if the box is thinner than a pixel.
        """
        sides = ((self.y_min, height), (self.x_min, width), (self.y_max, height), (self.x_max, width))
        top, left, bottom, right = (int(_clip(fraction) * size) for fraction, size in sides)
        return top, left, bottom, right


@dataclass(frozen=True)
class Found:
    """A detected object.

    Attributes:
        label: Name of the object; may be empty. Text from a model: it may contain anything but tags.
        box: Bounding box.
        mask_codes: 16 codes of its mask within the box, each below 128, or None.
    """

    label: str
    box: Box
    mask_codes: tuple[int, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the object in types that `json.dumps` accepts."""
        return {
            "label": self.label,
            "box": asdict(self.box),
            "mask_codes": None if self.mask_codes is None else list(self.mask_codes),
        }


def parse(text: str) -> list[Found]:
    """Parse the objects in text written by a model, in time linear in its length.

    Semicolons between objects are optional: four consecutive `<loc>` tags are a box, and the run of `<seg>` tags after
    them is its mask if there are exactly 16. A label follows its box; if a segment between semicolons starts with words
    and ends with a box, labels precede their boxes. Whitespace is ignored, a tag out of range counts as a space, and
    text that belongs to no box is skipped. Corners in the wrong order are swapped.

    Args:
        text: Such as `<loc0102><loc0051><loc0920><loc0767> cat ; <loc…> dog`.

    Returns:
        Objects in the order of the text; empty without boxes.
    """
    return [found for segment in _INVALID_TAG.sub(" ", text).split(";") for found in _parse_segment(segment)]


def render(found: Found) -> str:
    """Write an object as PaliGemma is trained to; join several with ` ; `.

    Args:
        found: Object, whose corners are rounded to 1/1023 and clipped to the image.

    Raises:
        GemwrightError: `parse` would not return the same label or mask.
    """
    label, codes = found.label, found.mask_codes
    if ";" in label or _TAG.search(label):
        raise GemwrightError(f"The label {label[:80]!r} has a semicolon or a location tag: remove it.")
    if codes is not None and not is_mask(codes):
        raise GemwrightError(f"The object {label[:80]!r} needs {MASK_CODES} mask codes below {CODEBOOK}, or None.")
    box = found.box
    corners = (round(_clip(side) * (BINS - 1)) for side in (box.y_min, box.x_min, box.y_max, box.x_max))
    tags = [f"<loc{corner:04d}>" for corner in corners] + [f"<seg{code:03d}>" for code in codes or ()]
    return f"{''.join(tags)} {label}".rstrip()


def is_mask(codes: tuple[int, ...]) -> bool:
    """Return whether these are 16 entries of the codebook of masks."""
    return len(codes) == MASK_CODES and all(0 <= code < CODEBOOK for code in codes)


def _parse_segment(segment: str) -> list[Found]:
    """Parse the objects between two semicolons."""
    parts = _OBJECT.split(segment)  # words, corners, codes, words, corners, codes, ..., words
    words = [_split_phrases(part) for part in parts[::3]]
    if words[0] and not words[-1]:
        labels = [phrases[-1] if phrases else "" for phrases in words[:-1]]
    else:
        labels = [phrases[0] if phrases else "" for phrases in words[1:]]
    boxes = zip(labels, parts[1::3], parts[2::3], strict=True)
    return [
        Found(label, _make_box(_parse_numbers(corners)), _make_mask(_parse_numbers(codes)))
        for label, corners, codes in boxes
    ]


def _split_phrases(words: str) -> list[str]:
    """Return the phrases between tags that belong to no box, with single spaces."""
    phrases = (" ".join(phrase.split()) for phrase in _TAG.split(words))
    return [phrase for phrase in phrases if phrase]


def _parse_numbers(tags: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(tags)]


def _make_box(bins: list[int]) -> Box:
    y, x = sorted(bins[::2]), sorted(bins[1::2])
    return Box(*(side / (BINS - 1) for side in (y[0], x[0], y[1], x[1])))


def _make_mask(codes: list[int]) -> tuple[int, ...] | None:
    return tuple(codes) if len(codes) == MASK_CODES else None


def _clip(fraction: float) -> float:
    return min(max(0.0, fraction), 1.0)
