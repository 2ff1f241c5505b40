"""Caption images, find objects in them, and write the images with the objects marked.

python examples/apps/find_objects.py photos/*.jpg --find cat --find "person" --out marked --model paligemma2-3b-mix-224

One JSON object a line is written for each image: its caption, the objects with their boxes in pixels, and the marked
image. PaliGemma knows the tasks `caption` and `detect`; its `mix` checkpoints do both.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gemwright
from gemwright.api import Model
from gemwright.errors import GemwrightError
from gemwright.images.drawing import draw, save_png
from gemwright.images.load import load_image
from gemwright.images.locations import Found, parse

BATCH = 2
"""Number of images that run as one batch, with two prompts each."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Caption images, and find and mark objects in them.")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--find", action="append", required=True, metavar="OBJECT", help="may be repeated")
    parser.add_argument("--out", type=Path, default=Path("marked"), metavar="FOLDER", help="of the marked images")
    parser.add_argument("--model", default="paligemma2-3b-mix-224", help="path, name or hub id")
    parser.add_argument("--language", default="en", help="of the captions")
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()
    try:
        targets = name_outputs(options.images, options.out)
        model = gemwright.load(options.model)
        options.out.mkdir(parents=True, exist_ok=True)
        prompts = (f"caption {options.language}", f"detect {' ; '.join(options.find)}")
        for record in mark(model, targets, prompts, options.max_tokens):
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
            sys.stdout.flush()
    except (GemwrightError, OSError) as error:
        parser.exit(2, f"{error}\n")


def name_outputs(images: list[Path], folder: Path) -> dict[Path, Path]:
    """Return the file to write for each image.

    Raises:
        GemwrightError: Two images would be written to one file, or a file exists.
    """
    targets = {image: folder / f"{image.stem}.png" for image in images}
    if len(set(targets.values())) < len(targets):
        raise GemwrightError("Two images have the same name; rename one, or mark them into different folders.")
    for target in targets.values():
        if target.exists():
            raise GemwrightError(f"{target} exists; pass another folder to --out.")
    return targets


def mark(
    model: Model, targets: dict[Path, Path], prompts: tuple[str, str], max_tokens: int
) -> Iterator[dict[str, Any]]:
    """Write the marked images, and yield a record of each.

    Args:
        model: A PaliGemma.
        targets: The file to write for each image.
        prompts: The prompts for a caption and for the objects.
        max_tokens: Maximum number of tokens of an answer.
    """
    paths = list(targets)
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        pixels = [load_image(path) for path in batch]
        answers = model.generate(
            [*prompts] * len(batch),
            images=[[image] for image in pixels for _ in prompts],
            temperature=0.0,
            max_tokens=max_tokens,
        )
        for path, image, caption, objects in zip(batch, pixels, answers[::2], answers[1::2], strict=True):
            found = parse(objects.text)
            save_png(draw(image, found), targets[path])
            yield {
                "image": str(path),
                "caption": caption.text.strip(),
                "objects": [describe(item, *image.shape[:2]) for item in found],
                "marked": str(targets[path]),
            }


def describe(found: Found, height: int, width: int) -> dict[str, Any]:
    """Return the label of an object and its box in pixels."""
    top, left, bottom, right = found.box.pixels(height, width)
    return {"label": found.label, "left": left, "top": top, "right": right, "bottom": bottom}


if __name__ == "__main__":
    main()
