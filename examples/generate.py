"""Continue a text and print the pieces as they arrive.

python examples/generate.py "Once upon a time" --model gemma-3-270m
"""

import argparse
import sys

import gemwright


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Continue a text.")
    parser.add_argument("prompt")
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--max-tokens", type=int, default=100)
    options = parser.parse_args()

    model = gemwright.load(options.model)
    stream = model.stream(options.prompt, max_tokens=options.max_tokens)
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    completion = stream.completion
    sys.stdout.write(f"\n\n{len(completion.tokens)} tokens, finish reason: {completion.finish_reason}\n")


if __name__ == "__main__":
    main()
