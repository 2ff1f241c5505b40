"""Write the table of tune.md: the memory of the weights and of what is trained, from the shapes of each variant."""

import math
import re
from pathlib import Path

from gemwright import tree
from gemwright.model.params import param_specs
from gemwright.train import lora
from gemwright.variants import VARIANTS, Variant

PAGE = Path(__file__).with_name("tune.md")
RANK = 16
COPIES = 3
"""Float32 numbers of each trained parameter: itself and the two moments of AdamW."""


def row(variant: Variant) -> list[float]:
    """Return the GB of LoRA over bfloat16 and float32 weights, and of training all weights."""
    weights = sum(math.prod(spec.shape) for spec in tree.flatten(param_specs(variant.config)).values())
    sizes = lora.targets(variant.config).values()
    adapter = 4 * COPIES * sum(RANK * repeats * (outputs + inputs) for repeats, outputs, inputs in sizes)
    return [(2 * weights + adapter) / 1e9, (4 * weights + adapter) / 1e9, 4 * COPIES * weights / 1e9]


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| model | LoRA, bfloat16 | LoRA, float32 | all weights |", "|---|---:|---:|---:|"]
    for name, variant in VARIANTS.items():
        if not variant.family.startswith("PaliGemma"):
            lines.append(f"| {name} | {' | '.join(f'{size:.1f}' for size in row(variant))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(
        re.sub(r"^\| model .*?\n(?!\|)", lambda _: table(), PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    )
