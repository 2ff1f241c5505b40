"""Write the table of which-model.md from gemwright's own memory forecast."""

import re
from pathlib import Path

from gemwright import memory
from gemwright.variants import VARIANTS, Variant

PAGE = Path(__file__).with_name("which-model.md")
BITS = {"4-bit": 4.5, "8-bit": 8.5, "bfloat16": 16.0}
"""Bits per weight, with the scales of quantized weights, by the header of a column."""
LONG = 8192
"""Tokens of the last column."""


def row(variant: Variant) -> list[float]:
    """Return the GB of one sequence of 1,024 tokens for each number of bits, and of the cache of `LONG` tokens."""
    rest = memory.forecast(variant.config, "stored", stored=0)
    cache = memory.forecast(variant.config, "stored", capacity=LONG, stored=0).state
    return [(rest.total + variant.parameters * bits / 8) / 1e9 for bits in BITS.values()] + [cache / 1e9]


def table() -> str:
    """Return the table in Markdown."""
    lines = [f"| model | {' | '.join(BITS)} | cache of {LONG:,} tokens |", "|---|" + "---:|" * (len(BITS) + 1)]
    for name, variant in VARIANTS.items():
        *sizes, cache = row(variant)
        lines.append(f"| {name} | {' | '.join(f'{size:.1f}' for size in sizes)} | {cache:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(
        re.sub(r"^\| model .*?\n(?!\|)", lambda _: table(), PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    )
