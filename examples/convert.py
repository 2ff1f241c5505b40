"""Convert a checkpoint, or quantize it, and print its size before and after.

python examples/convert.py model.gguf folder --bits 8
"""

import argparse
import sys
from pathlib import Path

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.quantize import quantize


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Convert or quantize a checkpoint.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--bits", type=int, choices=(8, 4), help="quantize; default: keep the dtype")
    options = parser.parse_args()

    if options.bits:
        quantize(options.source, options.target, options.bits)
    else:
        convert(options.source, options.target, "huggingface")
    for path in (options.source, options.target):
        nbytes = sum(tensor.nbytes for tensor in open_checkpoint(path).file.tensors.values())
        sys.stdout.write(f"{nbytes / 1e6:9.1f} MB  {path}\n")


if __name__ == "__main__":
    main()
