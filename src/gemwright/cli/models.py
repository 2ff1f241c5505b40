"""`gemwright models`: list the published models."""

from collections.abc import Sequence

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.local import published_here
from gemwright.variants import VARIANTS, Variant

HERE = "*"
"""Mark of a model that is on this machine."""


def models(as_json: o.JsonOption = False) -> None:
    """List the published models by the names that load them.

    Models with the same architecture share a row; * marks those on this machine.
    """
    present = published_here()
    if as_json:
        for name, variant in VARIANTS.items():
            render.write_json(
                {
                    "name": name,
                    "family": variant.family,
                    "parameters": variant.parameters,
                    "bfloat16_bytes": 2 * variant.parameters,
                    "context": variant.config.max_length,
                    "checkpoints": [f"google/{checkpoint}" for checkpoint in variant.checkpoints],
                    "on_this_machine": [name for name in variant.checkpoints if name in present],
                }
            )
        return
    rows = [_row(variant, present) for variant in VARIANTS.values()]
    _print(("name", "family", "params", "bfloat16", "context"), rows)
    if any(name in present for variant in VARIANTS.values() for name in variant.checkpoints):
        render.note(f"{HERE} on this machine")


def _row(variant: Variant, present: set[str]) -> tuple[list[str], list[str]]:
    """Return the marked names of a variant's checkpoints, and its facts."""
    context = variant.config.max_length
    return [f"{name} {HERE}" if name in present else name for name in variant.checkpoints], [
        variant.family,
        f"{variant.parameters / 1e9:.2f} B",
        render.size(2 * variant.parameters),
        "any" if context == 2**31 - 1 else f"{context:,}",
    ]


def _print(headers: Sequence[str], rows: Sequence[tuple[list[str], list[str]]]) -> None:
    """Print a table; on a narrow terminal, the names on lines of their own above the facts."""
    console = render.out()
    widths = [max(len(name) for names, _ in rows for name in names)]
    widths += [max(map(len, column)) for column in zip(headers[1:], *(facts for _, facts in rows), strict=True)]
    if sum(widths) + 2 * len(widths) > console.width:
        for names, facts in rows:
            console.print("\n".join(names), soft_wrap=True)
            console.print(f"  {', '.join(facts)}", style="dim", soft_wrap=True)
        return
    console.print(_line(headers[0], headers[1:], widths), style="dim", soft_wrap=True)
    for (first, *others), facts in rows:
        console.print("\n".join((_line(first, facts, widths), *others)), soft_wrap=True)


def _line(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of the table: the name and the family at the left of their columns, numbers at the right."""
    family, *numbers = cells
    left = f"{name:<{widths[0]}}  {family:<{widths[1]}}"
    return left + "".join(f"  {number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True))
