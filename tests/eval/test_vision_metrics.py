"""Metrics of images against pycocotools, pycocoevalcap and the published formulas."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemwright.eval import vision_metrics as metrics
from gemwright.eval.vision_metrics import Objects
from gemwright.images.locations import Box


@pytest.mark.parametrize("same", range(11))
def test_vqa_accuracy_is_the_average_over_nine_people(same: int):
    humans = ["blue"] * same + [f"other {index}" for index in range(10 - same)]
    every_nine = [min(1.0, nine.count("blue") / 3) for nine in itertools.combinations(humans, 9)]
    assert metrics.score_vqa("Blue.", humans) == pytest.approx(sum(every_nine) / 10, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs", "2 dogs"),
        ("dont know", "don't know"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("1,000", "1000"),
        ("red/white", "red white"),
        ("red, white", "red white"),
        (" an\napple ", "apple"),
        ("ten", "10"),
        ("none", "0"),
    ],
)
def test_answers_are_normalized_as_in_vqa(text: str, expected: str):
    assert metrics.normalize_answer(text) == expected


def test_edit_distance_is_that_of_its_recursion():
    def recurse(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        replaced = recurse(one[1:], other[1:]) + (one[0] != other[0])
        return min(replaced, recurse(one[1:], other) + 1, recurse(one, other[1:]) + 1)

    words = ["", "a", "stone", "stoned", "tone", "nets", "set"]
    for one, other in itertools.product(words, words):
        assert metrics.edit_distance(one, other) == recurse(one, other)


def test_anls_takes_the_nearest_reference_above_half():
    assert metrics.score_anls("Stones", ["stone", "river"]) == pytest.approx(1 - 1 / 6)
    assert metrics.score_anls("12  May", ["12 may"]) == 1
    assert metrics.score_anls("abcd", ["abxy"]) == 0.5
    assert metrics.score_anls("abcd", ["axyz"]) == 0


def test_relaxed_accuracy_allows_five_percent():
    cases = [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("-95", "-100", 1),
        ("50%", "0.5", 1),
        ("0", "0", 1),
        ("0.01", "0", 0),
    ]
    cases += [("Red", "red ", 1), ("red", "blue", 0), ("ten", "10", 0)]
    for answer, reference, expected in cases:
        assert metrics.score_relaxed(answer, reference) == expected, (answer, reference)


def draw_captions() -> tuple[list[str], list[list[str]]]:
    words = ["a", "the", "dog", "cat", "red", "stone", "river", "runs", "sits", "on", "near", "two"]
    draw = np.random.default_rng(0)

    def caption() -> str:
        return " ".join(draw.choice(words, draw.integers(1, 12)))

    captions = [caption() for _ in range(20)]
    references = [[caption() for _ in range(draw.integers(1, 6))] for _ in range(20)]
    references[0][0] = captions[0]
    return captions, references


def define_cider(captions: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D as its paper defines it, with a dense vector for each length of n-grams."""

    def list_grams(text: str, n: int) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]

    totals = np.zeros((len(captions), 4))
    for n in range(1, 5):
        every = sorted({gram for text in (*captions, *itertools.chain(*references)) for gram in list_grams(text, n)})
        rarity = np.array(
            [
                np.log(len(references))
                - np.log(max(1, sum(any(gram in list_grams(t, n) for t in some) for some in references)))
                for gram in every
            ]
        )
        for image, caption in enumerate(captions):
            values: list[float] = []
            found = rarity * [list_grams(caption, n).count(gram) for gram in every]
            for reference in references[image]:
                there = rarity * [list_grams(reference, n).count(gram) for gram in every]
                norm = np.linalg.norm(found) * np.linalg.norm(there)
                apart = len(list_grams(caption, 2)) - len(list_grams(reference, 2))
                cosine = np.minimum(found, there) @ there / norm if norm else 0.0
                values.append(10 * float(cosine) * np.exp(-(apart**2) / 72))
            totals[image, n - 1] = np.mean(values)
    return totals.mean(axis=1).tolist()


def test_cider_equals_its_definition():
    captions, references = draw_captions()
    expected = define_cider(captions, references)
    np.testing.assert_allclose(metrics.score_captions(captions, references), expected, rtol=1e-12, atol=1e-12)
    words = metrics.split_caption("A dog's bone,\non the red-brick floor.")
    assert words == ["a", "dog's", "bone", "on", "the", "red-brick", "floor"]


def test_cider_equals_that_of_pycocoevalcap():
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    captions, references = draw_captions()
    mean, each = cider.Cider().compute_score(
        dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)}
    )
    found = metrics.score_captions(captions, references)
    np.testing.assert_allclose(found, each, rtol=1e-12, atol=1e-12)
    assert np.mean(found) == pytest.approx(mean, rel=1e-12)


def test_overlaps_of_boxes_are_those_of_counted_cells():
    draw = np.random.default_rng(1)
    corners = np.sort(draw.integers(0, 12, (30, 2, 2)), axis=1)  # [box, low or high, y or x]
    boxes = metrics.stack_boxes(Box(*map(float, (*low, *high))) for low, high in corners)
    masks = np.zeros((30, 12, 12), np.bool_)
    for mask, (low, high) in zip(masks, corners, strict=True):
        mask[low[0] : high[0], low[1] : high[1]] = True
    found = metrics.compare_boxes(boxes[:10], boxes[10:])
    for i, j in np.ndindex(found.shape):
        one, other = masks[i], masks[10 + j]
        expected = (one & other).sum() / max((one | other).sum(), 1)
        assert found[i, j] == pytest.approx(expected, abs=1e-12)
        if (one | other).any():
            assert metrics.compare_masks(one, other) == pytest.approx(expected, abs=1e-12)
    assert metrics.compare_masks(masks[0] & False, masks[0] & False) == 1


def draw_objects(draw: np.random.Generator, count: int) -> Objects:
    low = draw.uniform(0, 60, (count, 2))
    boxes = np.concatenate([low, low + draw.uniform(5, 60, (count, 2))], axis=1)
    return Objects([str(label) for label in draw.choice(["cat", "dog", "hen"], count)], boxes)


def find_objects(draw: np.random.Generator, there: Objects) -> Objects:
    """Return the objects with noise, some twice or with another label, and false ones, some with equal scores."""
    other = draw_objects(draw, 6)
    twice = draw.choice(len(there.labels), len(there.labels))
    labels = [*there.labels, *(there.labels[index] for index in twice), *other.labels]
    boxes = np.concatenate([there.boxes, there.boxes[twice], other.boxes])
    boxes += draw.uniform(-2, 2, boxes.shape) * (draw.random((len(boxes), 1)) < 0.7)
    return Objects(labels, boxes, np.round(draw.random(len(labels)), 2))


def test_mean_average_precision_equals_that_of_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    draw = np.random.default_rng(2)
    expected = [draw_objects(draw, int(draw.integers(1, 9))) for _ in range(12)]
    found = [find_objects(draw, objects) for objects in expected]

    def list_boxes(images: list[Objects]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for image, objects in enumerate(images, 1):
            for place, (label, (y, x, bottom, right)) in enumerate(
                zip(objects.labels, objects.boxes.tolist(), strict=True)
            ):
                sides = [x, y, right - x, bottom - y]
                row = {"image_id": image, "category_id": ["cat", "dog", "hen"].index(label) + 1, "bbox": sides}
                row |= {"id": len(rows) + 1, "area": sides[2] * sides[3], "iscrowd": 0}
                rows.append(row if objects.scores is None else row | {"score": float(objects.scores[place])})
        return rows

    file = tmp_path / "expected.json"
    categories = [{"id": index, "name": name} for index, name in enumerate(("cat", "dog", "hen"), 1)]
    images = [{"id": index + 1} for index in range(12)]
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": list_boxes(expected)}))
    truth = COCO(str(file))
    evaluation = COCOeval(truth, truth.loadRes(list_boxes(found)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    ours = [metrics.score_detections(found, expected, some) for some in (metrics.IOU_THRESHOLDS, [0.5], [0.75])]
    np.testing.assert_allclose(ours, evaluation.stats[:3], rtol=1e-9)
    assert 0.1 < ours[0] < 0.9


def test_perfect_and_missing_detections():
    there = [Objects(["cat", "dog"], np.array([[0.0, 0, 10, 10], [5, 5, 20, 20]]))]
    perfect = [Objects(there[0].labels, there[0].boxes, np.array([0.5, 0.4]))]
    nothing = [Objects([], np.zeros((0, 4)), np.zeros(0))]
    assert metrics.score_detections(perfect, there) == 1
    assert metrics.score_detections(nothing, there) == 0
    assert np.isnan(metrics.score_detections(nothing, nothing))
