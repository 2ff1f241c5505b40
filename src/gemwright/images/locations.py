"""Places in a picture as PaliGemma writes them: `<loc0123>` four times, perhaps `<seg045>` sixteen times, a label.

Source: google-research/big_vision `pp/proj/paligemma/segmentation.py` (bins of 1/1023, order of the corners) and
`evaluators/proj/paligemma/transfers/segmentation.py` (the way back to pixels).
"""

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from gemwright.errors import GemwrightError

BINS: Final = 1024
MASK_CODES: Final = 16
CODEBOOK: Final = 128

_LOC = r"<loc(?:0[0-9]{3}|10[01][0-9]|102[0-3])>"
_SEG = r"<seg(?:0[0-9]{2}|1[01][0-9]|12[0-7])>"
_TAG = re.compile(r"<(?:loc|seg)[0-9]*+>")
_INVALID_TAG = re.compile(rf"(?!{_LOC}|{_SEG}){_TAG.pattern}")
_OBJECT = re.compile(rf"((?:{_LOC}\s*+){{4}})((?:{_SEG}\s*+)*+)")  # possessive, so the time is linear
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Box:
    """A rectangle, as fractions of the picture's height (y) and width (x) from its upper left corner."""

    y_min: float
    x_min: float
    y_max: float
    x_max: float

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (top, left, bottom, right) in whole pixels, cut off as PaliGemma's evaluation does.

        Bottom and right are exclusive: `image[top:bottom, left:right]` is the box. It never leaves the picture
        and is empty where the box is thinner than a pixel.
        """
        sides = ((self.y_min, height), (self.x_min, width), (self.y_max, height), (self.x_max, width))
        top, left, bottom, right = (int(_clipped(fraction) * size) for fraction, size in sides)
        return top, left, bottom, right


@dataclass(frozen=True)
class Found:
    """An object that the model found.

    Attributes:
        label: What it is; may be empty. Text of a model, so it may hold anything but the tags themselves.
        box: Where it is.
        mask_codes: The 16 codes of its outline within the box, each below 128, or None without one.
    """

    label: str
    box: Box
    mask_codes: tuple[int, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as numbers, strings, lists and dictionaries, for `json.dumps`."""
        return {
            "label": self.label,
            "box": asdict(self.box),
            "mask_codes": None if self.mask_codes is None else list(self.mask_codes),
        }


def parse(text: str) -> list[Found]:
    """Reads the objects in a text that a model has written, in time linear in its length.

    Semicolons separate objects, but need not: every four `<loc>` tags in a row are a box, and the run of `<seg>`
    tags behind them is its mask if there are exactly 16. A label follows its box; where a stretch between
    semicolons starts with words and ends with a box, labels precede their boxes. Spaces count for nothing, a tag
    out of range is as good as a space, and whatever belongs to no box is skipped. Corners in the wrong order are
    exchanged.

    Args:
        text: Such as `<loc0102><loc0051><loc0920><loc0767> cat ; <loc…> dog`.

    Returns:
        The objects in the order of the text; none if there are no boxes.
    """
    return [found for stretch in _INVALID_TAG.sub(" ", text).split(";") for found in _objects(stretch)]


def render(found: Found) -> str:
    """Writes an object as PaliGemma is trained to; ` ; ` belongs between several of them.

    Args:
        found: Corners are rounded to 1/1023 and clipped to the picture.

    Raises:
        GemwrightError: The label or the mask would not be read back as it is.
    """
    label, codes = found.label, found.mask_codes
    if ";" in label or _TAG.search(label):
        raise GemwrightError(f"The label {label[:80]!r} holds a semicolon or a location tag: take it out.")
    if codes is not None and not is_mask(codes):
        raise GemwrightError(f"The object {label[:80]!r} needs {MASK_CODES} mask codes below {CODEBOOK}, or None.")
    box = found.box
    corners = (round(_clipped(side) * (BINS - 1)) for side in (box.y_min, box.x_min, box.y_max, box.x_max))
    tags = [f"<loc{corner:04d}>" for corner in corners] + [f"<seg{code:03d}>" for code in codes or ()]
    return f"{''.join(tags)} {label}".rstrip()


def is_mask(codes: tuple[int, ...]) -> bool:
    """Says whether these are 16 entries of the codebook of masks."""
    return len(codes) == MASK_CODES and all(0 <= code < CODEBOOK for code in codes)


def _objects(stretch: str) -> list[Found]:
    """The objects between two semicolons."""
    parts = _OBJECT.split(stretch)  # words, corners, codes, words, corners, codes, ..., words
    words = [_phrases(part) for part in parts[::3]]
    if words[0] and not words[-1]:
        labels = [phrases[-1] if phrases else "" for phrases in words[:-1]]
    else:
        labels = [phrases[0] if phrases else "" for phrases in words[1:]]
    boxes = zip(labels, parts[1::3], parts[2::3], strict=True)
    return [Found(label, _box(_numbers(corners)), _mask(_numbers(codes))) for label, corners, codes in boxes]


def _phrases(words: str) -> list[str]:
    """What stands between tags that belong to no box, with single spaces."""
    phrases = (" ".join(phrase.split()) for phrase in _TAG.split(words))
    return [phrase for phrase in phrases if phrase]


def _numbers(tags: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(tags)]


def _box(bins: list[int]) -> Box:
    y, x = sorted(bins[::2]), sorted(bins[1::2])
    return Box(*(side / (BINS - 1) for side in (y[0], x[0], y[1], x[1])))


def _mask(codes: list[int]) -> tuple[int, ...] | None:
    return tuple(codes) if len(codes) == MASK_CODES else None


def _clipped(fraction: float) -> float:
    return min(max(0.0, fraction), 1.0)
