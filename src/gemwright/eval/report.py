"""The report of benchmarks: a table in Markdown, and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.eval.run import Result


def write_report(out: Path, results: Sequence[Result], variant: str, made_with: Mapping[str, Any]) -> None:
    """Write `report.md` and `results.json` of benchmarks.

    Args:
        out: The folder.
        results: The results so far.
        variant: The published name of the model, whose scores are compared.
        made_with: What the scores depend on.
    """
    rows = [dict(result.document(), published=result.published(variant)) for result in results]
    document = {"made_with": dict(made_with), "results": rows}
    with replace_file(out / "results.json") as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
    lines = ["| benchmark | metric | shots | items | score | 95% interval | published | within |", "| --- " * 8 + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in table(results, variant)]
    settings = ", ".join(f"{name} {value}" for name, value in made_with.items() if value not in (None, []))
    text = "\n".join([f"# Benchmarks of {variant or made_with['model']}", "", *lines, "", settings, ""])
    with replace_file(out / "report.md") as file:
        file.write(text.encode())


def table(results: Sequence[Result], variant: str) -> list[list[str]]:
    """Return the cells of each result: names, numbers in percent, and whether the interval has the published score."""
    return [_cells(result, variant) for result in results]


def _cells(result: Result, variant: str) -> list[str]:
    score, published = result.score, result.published(variant)
    items = f"{score.count:,}" if score.count == result.of else f"{score.count:,} of {result.of:,}"
    agrees = {None: "", True: "yes", False: "no"}[result.agrees(variant)]
    return [
        result.benchmark.title,
        result.metric,
        str(result.shots),
        items,
        f"{100 * score.value:.1f}",
        f"{100 * score.low:.1f} to {100 * score.high:.1f}",
        "" if published is None else f"{published:g}",
        agrees,
    ]
