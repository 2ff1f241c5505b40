"""Tasks over images: their scores, and a run with a tiny PaliGemma."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemwright.errors import DataError
from gemwright.eval import vision_tasks
from gemwright.eval.harness import HarnessModel
from gemwright.eval.local import find_tasks, write_tasks
from gemwright.images.locations import Box, Found, render
from gemwright.images.masks import LAYOUT, MaskDecoder, place
from tests.tiny.hf import write_model

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore")]
RECORDS: dict[str, dict[str, Any]] = {
    "vqa": {"question": "Which color?", "answers": ["red"] * 10},
    "docvqa": {"question": "Which year?", "answers": ["1999"]},
    "chartqa": {"question": "How many?", "answers": ["12"]},
    "captions": {"captions": ["a red square", "the square"]},
    "detection": {"objects": [{"label": "cat", "box": [0.1, 0.2, 0.5, 0.6]}]},
    "referring": {"phrase": "left cat", "box": [0.1, 0.2, 0.5, 0.6]},
}
REPLIES = {
    "vqa": "red",
    "docvqa": "1999",
    "chartqa": "11.9",
    "captions": "a red square",
    "detection": render(Found("cat", Box(0.1, 0.2, 0.5, 0.6))),
    "referring": render(Found("left cat", Box(0.1, 0.2, 0.5, 0.6))),
}


class ImageModel(HarnessModel):
    """A model that is given the images of requests."""

    MULTIMODAL = True

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        texts, _, extra = zip(*(request.args for request in requests), strict=True)
        images = [list(one["visual"]) for one in extra]
        return [one.text for one in self.model.generate(list(texts), images=images, max_tokens=4, temperature=0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    return ImageModel(str(write_model(tmp_path_factory.mktemp("model") / "paligemma", "paligemma")), dtype="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, record in RECORDS.items():
        (folder / name).mkdir()
        with (folder / name / "test.jsonl").open("w") as out:
            for number in range(2):
                pixels = draw.integers(0, 256, (40, 60, 3), np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{number}.png")
                out.write(json.dumps(record | {"image": f"{number}.png"}) + "\n")
    return folder


def evaluate(model: ImageModel, data: Path, folder: Path) -> dict[str, dict[str, float]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder.mkdir()
    tasks = [task for task in vision_tasks.TASKS if task.task != "gemwright_nlvr"]
    names = write_tasks(find_tasks(data, tasks), folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=False)
    assert results is not None
    return results["results"]


def test_a_tiny_model_runs_every_task(model: ImageModel, data: Path, tmp_path: Path):
    results = evaluate(model, data, tmp_path / "tasks")
    for name in RECORDS:
        scores = [value for key, value in results[f"gemwright_{name}"].items() if key.endswith(",none")]
        assert scores
        assert all(0 <= float(score) <= 10 for score in scores if score != "N/A")


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("vqa", "vqa_accuracy", 1.0),
        ("docvqa", "anls", 1.0),
        ("chartqa", "relaxed_accuracy", 1.0),
        ("referring", "box_iou", 1.0),
        ("referring", "box_found", 1.0),
    ],
)
def test_right_replies_have_full_scores(name: str, field: str, expected: float):
    score = {
        "vqa": vision_tasks.score_vqa,
        "docvqa": vision_tasks.score_anls,
        "chartqa": vision_tasks.score_chart,
        "referring": vision_tasks.score_box,
    }[name]
    assert score(RECORDS[name], [REPLIES[name]])[field] == pytest.approx(expected, abs=0.01)
    assert score(RECORDS[name], ["nothing"])[field] == 0


def test_detections_and_captions_are_scored_together():
    found = vision_tasks.score_detection(RECORDS["detection"], [REPLIES["detection"]])["mean_average_precision"]
    missed = vision_tasks.score_detection(RECORDS["detection"], ["nothing"])["mean_average_precision"]
    assert vision_tasks.average_detections([found]) == 1
    assert vision_tasks.average_detections([found, missed]) == pytest.approx(51 / 101)  # found at recalls 0 to 0.5
    right = vision_tasks.score_caption({"captions": ["a red square"]}, ["A red square."])["cider"]
    wrong = vision_tasks.score_caption({"captions": ["two old cats"]}, ["nothing"])["cider"]
    # Of four lengths of n-grams three occur, each with cosine 1; CIDEr is 10 times their average.
    assert vision_tasks.average_captions([right, wrong]) == pytest.approx((10 * 3 / 4 + 0) / 2)


def test_masks_are_decoded_before_they_are_compared():
    draw = np.random.default_rng(0)
    decoder = MaskDecoder({name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in LAYOUT.items()})
    found = Found("cat", Box(100 / 1023, 200 / 1023, 900 / 1023, 800 / 1023), tuple(range(16)))
    mask = place(decoder.decode(tuple(range(16))), found.box, 50, 70)
    assert mask.any()
    assert vision_tasks.score_mask(render(found), mask, decoder) == 1
    assert vision_tasks.score_mask(render(found), ~mask, decoder) == 0
    assert vision_tasks.score_mask("cat", mask, decoder) == 0


@pytest.mark.parametrize("box", [[0, 0, 1], [0, 0, 2, 1], [0.5, 0, 0.1, 1], ["a", 0, 1, 1], None])
def test_boxes_outside_the_image_are_named(box: Any):
    with pytest.raises(DataError, match="box"):
        vision_tasks.score_box({"box": box}, ["nothing"])


def test_missing_images_are_named(tmp_path: Path):
    file = tmp_path / "test.jsonl"
    file.write_text('{"image": "none.png"}\n')
    with pytest.raises(DataError, match=r"record 1: no image file 'none\.png'"):
        list(vision_tasks.read_images(file))


def test_nlvr_takes_the_first_image_of_each_sentence(tmp_path: Path):
    (tmp_path / "images").mkdir()
    file = tmp_path / "dev.jsonl"
    file.write_text(json.dumps({"identifier": "12-3", "sentence": "There is a cat", "label": "true"}))
    with pytest.raises(DataError, match=r"dev-12-3-0\.png is missing"):
        list(vision_tasks.read_nlvr(file))
    Image.new("RGB", (4, 4)).save(tmp_path / "images/dev-12-3-0.png")
    (record,) = vision_tasks.read_nlvr(file)
    assert vision_tasks.load_images(record)[0].size == (4, 4)
    assert vision_tasks.score_label(record, ["True."]) == {"exact_match": 1.0}
    assert vision_tasks.score_label(record, ["false"]) == {"exact_match": 0.0}
