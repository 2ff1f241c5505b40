"""Draw the boxes of a PaliGemma answer on a photo, and print them as JSON.

python examples/draw_locations.py photo.jpg "<loc0051><loc0102><loc0920><loc0767> cat" out.png

With `--masks vae-oid.npz`, the mask decoder published at gs://big_vision/paligemma/vae-oid.npz, also draw the
outlines of a `segment` answer.
"""

import argparse
import json
import sys
from pathlib import Path

from gemwright.errors import GemwrightError
from gemwright.images.drawing import draw, save_png
from gemwright.images.load import load_image
from gemwright.images.locations import parse
from gemwright.images.masks import MaskDecoder, place_masks


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw the boxes of a PaliGemma answer on a photo.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("text", help="the answer: '<loc0051><loc0102><loc0920><loc0767> cat ; ...'")
    parser.add_argument("output", type=Path, help="the PNG to write")
    parser.add_argument("--masks", type=Path, metavar="NPZ", help="the mask decoder, vae-oid.npz")
    options = parser.parse_args()
    try:
        run(options.photo, options.text, options.output, options.masks)
    except GemwrightError as error:
        parser.exit(2, f"{error}\n")


def run(photo: Path, text: str, output: Path, decoder_path: Path | None) -> None:
    """Draw and print the objects of an answer."""
    image = load_image(photo)
    found = parse(text)
    decoder = None if decoder_path is None else MaskDecoder.load(decoder_path)
    if decoder is None and any(item.mask_codes for item in found):
        sys.stderr.write("Masks are not drawn without the mask decoder; pass --masks vae-oid.npz.\n")
    save_png(draw(image, found, place_masks(decoder, found, *image.shape[:2])), output)
    sys.stdout.write(json.dumps([item.as_dict() for item in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
