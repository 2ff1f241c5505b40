"""Compare decoding with and without a draft model: the text is the same, only the speed differs.

python examples/draft_model.py --model gemma-3-12b-it --draft gemma-3-1b-it "Name ten gems."
"""

import argparse
import sys
import time

import gemwright


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure speculative decoding.")
    parser.add_argument("prompt")
    parser.add_argument("--model", required=True, help="path, name or hub id")
    parser.add_argument("--draft", required=True, help="a smaller model with the same vocabulary")
    parser.add_argument("--max-tokens", type=int, default=100)
    options = parser.parse_args()

    for draft in (None, options.draft):
        model = gemwright.load(options.model, draft=draft)
        model.generate(options.prompt, temperature=0.0, max_tokens=options.max_tokens)  # compile
        start = time.perf_counter()
        completion = model.generate(options.prompt, temperature=0.0, max_tokens=options.max_tokens)
        seconds = time.perf_counter() - start
        accepted = f"{completion.accepted} of {completion.proposed} draft tokens accepted"
        sys.stdout.write(f"{completion.text!r}\n{len(completion.tokens) / seconds:.1f} tokens/s, {accepted}\n")


if __name__ == "__main__":
    main()
