"""Ask PaliGemma or Gemma 3 about an image.

python examples/images.py photo.jpg "caption en" --model paligemma2-3b-mix-224
"""

import argparse
import json
import sys

import gemwright
from gemwright.images.locations import parse


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Ask about an image.")
    parser.add_argument("image")
    parser.add_argument("prompt", help="a question, or a task such as 'caption en' or 'detect cat'")
    parser.add_argument("--model", default="paligemma2-3b-mix-224", help="path, name or hub id")
    parser.add_argument("--max-tokens", type=int, default=100)
    options = parser.parse_args()

    model = gemwright.load(options.model)
    answer = model.generate(options.prompt, images=[options.image], max_tokens=options.max_tokens).text
    objects = [found.as_dict() for found in parse(answer)]  # boxes and masks of 'detect' and 'segment'
    sys.stdout.write(json.dumps({"answer": answer, "objects": objects}) + "\n")


if __name__ == "__main__":
    main()
