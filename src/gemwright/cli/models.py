"""`gemwright models`: list the published models."""

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.variants import VARIANTS


def models(as_json: o.JsonOption = False) -> None:
    """List the published models by the names that load them.

    Models with the same architecture share a row.
    """
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
                }
            )
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("name", no_wrap=True)
    table.add_column("family", no_wrap=True)
    for header in ("params", "bfloat16", "context"):
        table.add_column(header, justify="right", no_wrap=True)
    for variant in VARIANTS.values():
        context = variant.config.max_length
        table.add_row(
            "\n".join(variant.checkpoints),
            variant.family,
            f"{variant.parameters / 1e9:.2f} B",
            render.size(2 * variant.parameters),
            "any" if context == 2**31 - 1 else f"{context:,}",
        )
    render.out().print(table)
