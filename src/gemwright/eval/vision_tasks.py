"""Tasks over images in lm-eval's format: questions, captions, boxes and masks, with PaliGemma's prompts.

lm-eval calls `score_*` with the reply to one record, and `average_*` with what those returned. Records name an image
file of their folder; `tasks/` has the definitions.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import DataError
from gemwright.eval import vision_metrics as metrics
from gemwright.eval.definitions import Fields, make_task, read_lines
from gemwright.images.load import load_image
from gemwright.images.locations import Box, parse
from gemwright.images.masks import MaskDecoder, place

if TYPE_CHECKING:
    from PIL.Image import Image

Document = Mapping[str, Any]
"""A record of a task."""


def read_images(file: Path) -> Iterator[Fields]:
    """Yield the records of a file, with the path of each image.

    Raises:
        DataError: A record names no image file of the folder.
    """
    for number, record in enumerate(read_lines(file), 1):
        name = record.get("image")
        if not isinstance(name, str) or not (file.parent / name).is_file():
            raise DataError(f"{file}, record {number}: no image file {str(name)[:80]!r}; name one of the folder.")
        yield record | {"image": str(file.parent / name)}


def read_nlvr(file: Path) -> Iterator[Fields]:
    """Yield NLVR's sentences, each with the first of its images."""
    for record in read_lines(file):
        identifier, _, number = record["identifier"].partition("-")
        image = file.parent / "images" / f"{file.stem}-{identifier}-{number}-0.png"
        if not image.is_file():
            raise DataError(f"{file}: the image {image.name} is missing from its folder.")
        yield {"image": str(image), "sentence": record["sentence"], "label": record["label"]}


def load_images(document: Document) -> "list[Image]":
    """Return the images of a record, for lm-eval's `doc_to_image`."""
    from PIL import Image

    return [Image.fromarray(load_image(document["image"]))]


def score_vqa(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Return VQA's accuracy."""
    return {"vqa_accuracy": metrics.score_vqa(results[0], document["answers"])}


def score_anls(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Return the similarity to the nearest answer."""
    return {"anls": metrics.score_anls(results[0], document["answers"])}


def score_chart(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Return the relaxed accuracy."""
    return {"relaxed_accuracy": max(metrics.score_relaxed(results[0], answer) for answer in document["answers"])}


def score_exactly(field: str, document: Document, results: Sequence[str]) -> dict[str, float]:
    """Return whether a reply is the answer, in lower case and without a period."""
    return {"exact_match": float(results[0].strip().rstrip(".").lower() == str(document[field]).lower())}


score_label = partial(score_exactly, "label")

Caption = tuple[str, list[str]]
"""A caption, and those that people wrote."""


def score_caption(document: Document, results: Sequence[str]) -> dict[str, Caption]:
    """Return a caption with its references, which CIDEr compares over all images."""
    return {"cider": (results[0].strip(), list(document["captions"]))}


def average_captions(items: Sequence[Caption]) -> float:
    """Return CIDEr, where 1 is often written as 100."""
    return float(np.mean(metrics.score_captions([caption for caption, _ in items], [some for _, some in items])))


Detections = tuple[metrics.Objects, metrics.Objects]
"""The objects that a model found, and those that are there."""


def score_detection(document: Document, results: Sequence[str]) -> dict[str, Detections]:
    """Return the objects of a reply with those of the record.

    Boxes of a reply have no scores: those that come first count as more certain.
    """
    found = parse(results[0])
    scores = np.linspace(1.0, 0.0, len(found), endpoint=False)
    there = [_read_box(one["box"]) for one in document["objects"]]
    expected = metrics.Objects([str(one["label"]) for one in document["objects"]], metrics.stack_boxes(there))
    boxes = metrics.stack_boxes(one.box for one in found)
    return {"mean_average_precision": (metrics.Objects([one.label for one in found], boxes, scores), expected)}


def average_detections(items: Sequence[Detections]) -> float:
    """Return COCO's mean average precision."""
    return metrics.score_detections([found for found, _ in items], [expected for _, expected in items])


def score_box(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Return the overlap of the first box of a reply with that of the record; 0 without one."""
    found = metrics.stack_boxes(one.box for one in parse(results[0])[:1])
    overlap = metrics.compare_boxes(found, metrics.stack_boxes([_read_box(document["box"])]))
    return {"box_iou": float(overlap.sum()), "box_found": float(overlap.sum() >= 0.5)}


def _read_box(sides: Sequence[float]) -> Box:
    """Return a box from y_min, x_min, y_max, x_max as fractions of the image.

    Raises:
        DataError: It is none.
    """
    try:
        y_min, x_min, y_max, x_max = map(float, sides)
    except (TypeError, ValueError) as error:
        raise DataError(f"{str(sides)[:80]} is no box: give y_min, x_min, y_max, x_max.") from error
    if not (0 <= y_min <= y_max <= 1 and 0 <= x_min <= x_max <= 1):
        raise DataError(f"The box {str(sides)[:80]} is no part of the image: give fractions of its height and width.")
    return Box(y_min, x_min, y_max, x_max)


def score_mask(reply: str, expected: NDArray[np.bool_], decoder: MaskDecoder) -> float:
    """Return the overlap of the mask of a reply's first object with the expected mask; 0 without one.

    PaliGemma's evaluation of RefCOCO averages this over all phrases.

    Args:
        reply: Such as `<loc0102>...<seg045>... cat`.
        expected: [height, width], True inside the object.
        decoder: PaliGemma's mask decoder.
    """
    found = next(iter(parse(reply)), None)
    if found is None or found.mask_codes is None:
        return 0.0
    return metrics.compare_masks(place(decoder.decode(found.mask_codes), found.box, *expected.shape), expected)


TASKS: Final = (
    make_task("nlvr", "nlvr/dev.jsonl", read_nlvr),
    make_task("vqa", "vqa/test.jsonl", read_images),
    make_task("docvqa", "docvqa/test.jsonl", read_images),
    make_task("chartqa", "chartqa/test.jsonl", read_images),
    make_task("captions", "captions/test.jsonl", read_images),
    make_task("detection", "detection/test.jsonl", read_images),
    make_task("referring", "referring/test.jsonl", read_images),
)
"""Image tasks and the files that serve them."""
