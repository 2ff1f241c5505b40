"""Train a tiny PaliGemma from nothing to detect colored shapes, and measure it on pictures that it has not seen.

python recipes/shapes.py --out shapes

The pictures are drawn, the weights are random, and the tokenizer has the words of the task and PaliGemma's location
tokens. The answers are in PaliGemma's own format: `detect red circle` gives four location tokens and `red circle`. It
takes about five minutes with two cores.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import gemwright
from gemwright.checkpoint.create import create
from gemwright.eval.vision_metrics import compare_boxes, stack_boxes
from gemwright.images.drawing import draw, save_png
from gemwright.images.locations import Box, Found, parse, render
from gemwright.text.vocabulary import SPECIAL, Vocabulary
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train

RECIPE = Recipe(method="full", learning_rate=2e-3, batch_size=16, length=64, steps=1500)
PICTURES, TEST_PICTURES = 6000, 200
SIDE, PATCH, SCALE = 48, 8, 5
"""Pixels of a side of a picture and of a patch, and of a side of a pixel in the plot."""
COLUMNS, ROWS = 4, 3
"""Pictures of the plot."""
COLORS = {
    "red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (240, 220, 40),
    "purple": (170, 50, 200), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
BACKGROUND = (128, 128, 128)
SIZES = 12, 24
"""Least and largest width and height of a shape in pixels."""
MOST = 3
"""Maximum number of shapes of a picture, all of different colors."""
LOCATIONS = 1024 + 128
"""Number of PaliGemma's location and segmentation tokens, which follow those of the tokenizer file."""
TEXT = {
    "model_type": "gemma", "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24, "max_position_embeddings": 512,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
}  # fmt: skip
Pixels = NDArray[np.uint8]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train a tiny PaliGemma to detect colored shapes.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="number of training steps")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="number of pictures to learn from")
    parser.add_argument("--test", type=int, default=TEST_PICTURES, help="number of pictures to measure on")
    options = parser.parse_args()
    run(options.out, options.steps, options.pictures, options.test)


def run(out: Path, steps: int, pictures: int = PICTURES, test: int = TEST_PICTURES) -> dict[str, Any]:
    """Train a model for a number of steps, and return the measures before and after."""
    model = make_model(out / "model")
    print(f"Drawing {pictures + test:,} pictures ...", flush=True)
    training, unseen = write_pictures(out / "train", pictures, 0), write_pictures(out / "test", test, 1)
    before, _ = measure_boxes(gemwright.load(model, dtype="float32"), unseen)
    recipe = Recipe(**RECIPE.document() | {"steps": steps})
    result = train(prepare(model, training, out / "run", recipe, held_out=0.0), measure.report)
    print(f"Measuring {result} ...", flush=True)
    after, found = measure_boxes(gemwright.load(result, dtype="float32"), unseen)
    save_png(plot(unseen, found), out / "boxes.png")
    measure.write_results(out / "results.json", before, after, steps=steps)
    return {"before": before, "after": after}


def draw_picture(random: np.random.Generator) -> tuple[Pixels, list[Found]]:
    """Draw some shapes that do not overlap."""
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    pen, free, found = ImageDraw.Draw(image), np.ones((SIDE, SIDE), bool), list[Found]()
    for color in random.permutation(list(COLORS))[: random.integers(1, MOST + 1)].tolist():
        height, width = random.integers(SIZES[0], SIZES[1] + 1, 2).tolist()
        top, left = int(random.integers(SIDE - height + 1)), int(random.integers(SIDE - width + 1))
        place = slice(top, top + height), slice(left, left + width)
        if not free[place].all():
            continue
        free[place] = False
        shape = SHAPES[random.integers(len(SHAPES))]
        corners = left, top, left + width - 1, top + height - 1
        match shape:
            case "circle":
                pen.ellipse(corners, COLORS[color])
            case "square":
                pen.rectangle(corners, COLORS[color])
            case _:
                pen.polygon([corners[0::3], (left + (width - 1) / 2, top), corners[2:]], COLORS[color])
        box = Box(top / SIDE, left / SIDE, (top + height) / SIDE, (left + width) / SIDE)
        found.append(Found(f"{color} {shape}", box))
    return np.asarray(image), found


def write_pictures(folder: Path, count: int, seed: int) -> Path:
    """Write pictures, and a record with prefix and suffix for each shape."""
    folder.mkdir(parents=True, exist_ok=True)
    random, records = np.random.default_rng(seed), list[dict[str, str]]()
    for index in range(count):
        pixels, found = draw_picture(random)
        name = f"{index:05}.png"
        save_png(pixels, folder / name)
        records += [{"image": name, "prefix": f"detect {shape.label}", "suffix": render(shape)} for shape in found]
    return measure.write_records(folder / "records.jsonl", records)


def make_model(folder: Path) -> Path:
    """Write a model with random weights, unless it is there from an earlier run."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        tokenizer, config = folder.with_name("tokenizer.model"), folder.with_name("config.json")
        vocabulary = make_vocabulary()
        tokenizer.write_bytes(vocabulary.sentencepiece_model())
        size = vocabulary.size + LOCATIONS
        text, width = TEXT | {"vocab_size": size}, TEXT["hidden_size"]
        values = {"model_type": "paligemma", "text_config": text, "vision_config": VISION | {"projection_dim": width}}
        values |= {"projection_dim": width, "hidden_size": width, "image_token_index": size}
        config.write_text(json.dumps(values))
        create(config, str(tokenizer), folder)
    return folder


def make_vocabulary() -> Vocabulary:
    """Return special tokens, bytes, letters, and the words of the task, each with its beginnings, to be merged."""
    words = ["detect", *(f"\u2581{word}" for word in (*COLORS, *SHAPES))]
    letters = sorted({letter for word in words for letter in word})
    beginnings = {word[:length] for word in words for length in range(2, len(word) + 1)}
    learned = [*letters, *sorted(beginnings, key=lambda text: (len(text), text))]
    pieces = [*SPECIAL, *(f"<0x{value:02X}>" for value in range(256)), *learned]
    kinds = [3, 3, 3, 2] + [6] * 256 + [1] * len(learned)
    scores = [0.0] * (len(SPECIAL) + 256) + [-float(rank) for rank in range(len(learned))]
    values = {"tokens": pieces, "scores": scores, "token_type": kinds}
    return Vocabulary.from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()})


def measure_boxes(model: gemwright.Model, records: Path) -> tuple[dict[str, float], list[Found | None]]:
    """Return the mean intersection over union of the boxes and the share of right answers, and what was found."""
    given = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    found: list[Found | None] = []
    for batch in (given[start : start + measure.BATCH] for start in range(0, len(given), measure.BATCH)):
        images = [[records.parent / record["image"]] for record in batch]
        replies = model.generate([record["prefix"] for record in batch], images, max_tokens=12, temperature=0.0)
        found += [next(iter(parse(reply.text)), None) for reply in replies]
    overlaps = [
        0.0 if one is None else float(compare_boxes(stack_boxes([one.box]), stack_boxes([there.box]))[0, 0])
        for one, there in zip(found, expected(given), strict=True)
    ]
    labels = [one is not None and one.label == there.label for one, there in zip(found, expected(given), strict=True)]
    return {
        "mean intersection over union": float(np.mean(overlaps)),
        "boxes with an overlap of half or more": float(np.mean(np.array(overlaps) >= 0.5)),
        "right labels": float(np.mean(labels)),
    }, found


def expected(records: Sequence[dict[str, str]]) -> Iterator[Found]:
    """Yield the object of each record."""
    return (parse(record["suffix"])[0] for record in records)


def plot(records: Path, found: Sequence[Found | None]) -> Pixels:
    """Return some pictures, enlarged, with the boxes that were found, and in white those that are there."""
    given = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    there, here = dict[str, list[Found]](), dict[str, list[Found]]()
    for record, one, other in zip(given, found, expected(given), strict=True):
        there.setdefault(record["image"], []).append(other)
        here.setdefault(record["image"], []).extend([] if one is None else [one])
    names = list(there)[: COLUMNS * ROWS]
    tiles = np.full((COLUMNS * ROWS, (SIDE + 2) * SCALE, (SIDE + 2) * SCALE, 3), 255, np.uint8)
    for index, name in enumerate(names):
        image = Image.open(records.parent / name).resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.NEAREST)
        for other in there[name]:
            top, left, bottom, right = other.box.pixels(*image.size)
            ImageDraw.Draw(image).rectangle((left - 1, top - 1, right, bottom), outline="white", width=2)
        tiles[index][SCALE:-SCALE, SCALE:-SCALE] = draw(np.asarray(image), here[name])
    return np.concatenate([np.concatenate(tiles[row::ROWS], axis=1) for row in range(ROWS)])


if __name__ == "__main__":
    main()
