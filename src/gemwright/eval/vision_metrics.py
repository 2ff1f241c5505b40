"""Metrics of PaliGemma's transfer tasks: answers, captions, boxes and masks."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemwright.images.locations import Box

Boxes = NDArray[np.float64]
"""[N, 4]: y_min, x_min, y_max, x_max of N boxes."""

_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_SHORT_FORMS = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "i'm i've isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't she'd "
    "she's should've shouldn't somebody'd somebody'll somebody's someone'd someone'll someone's something'd "
    "something'll that's there'd there're there's they'd they'll they're they've wasn't we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't "
    "would've wouldn't y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _SHORT_FORMS.split()}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_COMMA = re.compile(r"\d,\d")


def normalize_answer(text: str) -> str:
    """Return an answer as VQA compares it: without punctuation and articles, numbers in digits, words in lower case.

    Source: Antol et al. (2015), arXiv:1505.00468, and the published evaluation code of VQA.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _MARKS:
        joined = f"{mark} " in text or f" {mark}" in text or bool(_COMMA.search(text))
        text = text.replace(mark, "" if joined else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def score_vqa(answer: str, humans: Sequence[str]) -> float:
    """Return VQA's accuracy of an answer: full if three of nine people gave it, averaged over who is left out.

    Args:
        answer: The model's answer.
        humans: Answers of (ten) people.
    """
    answer, given = normalize_answer(answer), [normalize_answer(human) for human in humans]
    same = given.count(answer)
    shares = [min(1.0, (same - (human == answer)) / 3) for human in given]
    return sum(shares) / len(shares)


def edit_distance(one: str, other: str) -> int:
    """Return the number of characters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def score_anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Return the normalized Levenshtein similarity to the nearest reference; 0 below the threshold.

    Its average is ANLS, the metric of DocVQA, InfoVQA and ST-VQA. Source: Biten et al. (2019), arXiv:1907.00490.
    """
    answer = " ".join(answer.lower().split())
    best = 0.0
    for reference in (" ".join(reference.lower().split()) for reference in references):
        longest = max(len(answer), len(reference), 1)
        best = max(best, 1 - edit_distance(answer, reference) / longest)
    return best if best >= threshold else 0.0


def score_relaxed(answer: str, reference: str, tolerance: float = 0.05) -> float:
    """Return 1 if a number is within 5% of the reference or a text equals it in lower case, else 0.

    Its average is the relaxed accuracy of ChartQA. Source: Masry et al. (2022), arXiv:2203.10244; a percentage is read
    as a fraction, and a reference of 0 is compared as text, as in the published code of Pix2Struct.
    """
    found, expected = _to_number(answer), _to_number(reference)
    if found is not None and expected:
        return float(abs(found - expected) / abs(expected) <= tolerance)
    return float(answer.strip().lower() == reference.strip().lower())


def _to_number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


CIDER_LENGTHS: Final = 4
"""Longest n-grams of CIDEr, in words."""
CIDER_SIGMA: Final = 6.0
"""Standard deviation of the penalty for a difference in length, in words."""
_CAPTION_WORD = re.compile(r"\w+(?:['-]\w+)*")


def split_caption(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation."""
    return _CAPTION_WORD.findall(caption.lower())


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr of each caption; the corpus's CIDEr is their average, often given times 100.

    This is CIDEr-D, the variant of the COCO server: n-grams of 1 to 4 words weighted by their rarity in the references
    of all images, clipped, with a penalty for another length. Source: Vedantam et al. (2015), arXiv:1411.5726.

    Args:
        captions: One caption for each image.
        references: Captions by people for each image; rarity is counted over them, so that few images give low scores.
    """
    counted = [[_count_ngrams(reference) for reference in some] for some in references]
    frequency = Counter(gram for some in counted for gram in {gram for counts in some for gram in counts})
    weigh = _Rarity(frequency, math.log(max(len(references), 1))).weigh
    scores: list[float] = []
    for caption, some in zip(captions, counted, strict=True):
        found = weigh(_count_ngrams(caption))
        scores.append(10 * float(np.mean([_compare_ngrams(found, weigh(counts)) for counts in some])))
    return scores


NGrams = Counter[tuple[str, ...]]
"""Numbers of n-grams."""


@dataclass(frozen=True)
class _Weighted:
    grams: dict[tuple[str, ...], float]
    norms: list[float]
    length: int


@dataclass(frozen=True)
class _Rarity:
    frequency: NGrams
    log_images: float

    def weigh(self, counts: NGrams) -> _Weighted:
        grams = {
            gram: count * (self.log_images - math.log(max(1, self.frequency[gram]))) for gram, count in counts.items()
        }
        squares = [0.0] * CIDER_LENGTHS
        for gram, weight in grams.items():
            squares[len(gram) - 1] += weight * weight
        # As in the published code, the length is the number of pairs of words.
        length = sum(count for gram, count in counts.items() if len(gram) == 2)
        return _Weighted(grams, [math.sqrt(square) for square in squares], length)


def _count_ngrams(caption: str) -> NGrams:
    words = split_caption(caption)
    spans = ((start, length) for length in range(1, CIDER_LENGTHS + 1) for start in range(len(words) - length + 1))
    return Counter(tuple(words[start : start + length]) for start, length in spans)


def _compare_ngrams(found: _Weighted, reference: _Weighted) -> float:
    products = [0.0] * CIDER_LENGTHS
    for gram, weight in found.grams.items():
        expected = reference.grams.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, expected) * expected
    norms = [one * other for one, other in zip(found.norms, reference.norms, strict=True)]
    cosines = [product / norm if norm else 0.0 for product, norm in zip(products, norms, strict=True)]
    return float(np.mean(cosines)) * math.exp(-((found.length - reference.length) ** 2) / (2 * CIDER_SIGMA**2))


def stack_boxes(boxes: Iterable[Box]) -> Boxes:
    """Return boxes as an array."""
    rows = [(box.y_min, box.x_min, box.y_max, box.x_max) for box in boxes]
    return np.array(rows, np.float64).reshape(-1, 4)


def compare_boxes(found: Boxes, expected: Boxes) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of boxes, [N, M]; 0 where both are empty."""
    low = np.maximum(found[:, None, :2], expected[None, :, :2])
    high = np.minimum(found[:, None, 2:], expected[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=-1) for boxes in (found, expected)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def compare_masks(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks [height, width]; 1 if both are empty."""
    union = int(np.count_nonzero(found | expected))
    return int(np.count_nonzero(found & expected)) / union if union else 1.0


@dataclass(frozen=True)
class Objects:
    """Labelled boxes of one image; those that a model found have scores.

    Attributes:
        labels: Label of each box.
        boxes: [N, 4], all in the same unit.
        scores: [N], or None for the objects that are there.
    """

    labels: Sequence[str]
    boxes: Boxes
    scores: NDArray[np.float64] | None = None


IOU_THRESHOLDS: Final = tuple(np.linspace(0.5, 0.95, 10))
"""Overlaps from which a box counts as found, in COCO's average precision."""
MAX_DETECTIONS: Final = 100
"""Boxes of an image and label that count, those of the highest scores."""
_RECALLS = np.linspace(0.0, 1.0, 101)


def score_detections(
    found: Sequence[Objects], expected: Sequence[Objects], thresholds: Sequence[float] = IOU_THRESHOLDS
) -> float:
    """Return COCO's mean average precision over labels and thresholds; NaN without expected objects.

    As COCO's AP for all sizes, without crowds: boxes are matched in the order of their scores, and precision is read at
    101 values of recall. Source: the published evaluation code of COCO.

    Args:
        found: What a model found in each image.
        expected: What is there.
        thresholds: Overlaps from which a box counts as found.
    """
    labels = sorted({label for objects in expected for label in objects.labels})
    values = [
        _average_precision([_select(one, label) for one in found], [_select(one, label) for one in expected], threshold)
        for label in labels
        for threshold in thresholds
    ]
    return float(np.mean(values)) if values else math.nan


def _select(objects: Objects, label: str) -> tuple[Boxes, NDArray[np.float64]]:
    """Return the boxes of a label and their scores, the highest first."""
    chosen = np.array([name == label for name in objects.labels], np.bool_)
    boxes = objects.boxes[chosen]
    scores = np.ones(len(boxes)) if objects.scores is None else objects.scores[chosen]
    order = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS] if objects.scores is not None else np.arange(len(boxes))
    return boxes[order], scores[order]


def _average_precision(
    found: Sequence[tuple[Boxes, NDArray[np.float64]]],
    expected: Sequence[tuple[Boxes, NDArray[np.float64]]],
    threshold: float,
) -> float:
    total = sum(len(boxes) for boxes, _ in expected)
    hits = [_match(boxes, there, threshold) for (boxes, _), (there, _) in zip(found, expected, strict=True)]
    order = np.argsort(-np.concatenate([scores for _, scores in found]), kind="stable")
    hit = np.concatenate(hits)[order]
    true, false = np.cumsum(hit), np.cumsum(~hit)
    recall, precision = true / total, true / np.maximum(true + false, 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    places = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.mean(np.append(precision, 0.0)[np.minimum(places, len(precision))]))


def _match(boxes: Boxes, there: Boxes, threshold: float) -> NDArray[np.bool_]:
    """Return which boxes find an object that none before them found."""
    overlaps = compare_boxes(boxes, there)
    hits = np.zeros(len(boxes), np.bool_)
    for row in range(len(boxes) if len(there) else 0):
        # The last of equal overlaps, as in the published code.
        best = len(there) - 1 - int(np.argmax(overlaps[row][::-1]))
        if overlaps[row, best] >= min(threshold, 1 - 1e-10):
            hits[row], overlaps[:, best] = True, -1.0
    return hits
