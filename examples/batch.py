"""Continue all lines of a file as one batch and write one JSON object per line.

python examples/batch.py prompts.txt --model gemma-3-270m > completions.jsonl
"""

import argparse
import json
import sys
from pathlib import Path

import gemwright


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Continue the lines of a file as one batch.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--max-tokens", type=int, default=100)
    options = parser.parse_args()

    model = gemwright.load(options.model)
    prompts = [line for line in options.file.read_text().splitlines() if line]
    seeds = list(range(len(prompts)))  # each text gets its own seed
    completions = model.generate(prompts, seed=seeds, max_tokens=options.max_tokens)
    for prompt, completion in zip(prompts, completions, strict=True):
        record = {"prompt": prompt, "text": completion.text, "finish_reason": completion.finish_reason}
        sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
