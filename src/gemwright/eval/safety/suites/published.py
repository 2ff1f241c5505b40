"""The published safety scores of instruction-tuned models, and of pretrained RecurrentGemma, in percent.

Sources: Gemma 1 report, Tables 8 and 10; RecurrentGemma report, Table 6; Gemma 2 report, Table 18.
"""

from collections.abc import Mapping

VARIANTS = (
    "gemma-2b-it", "gemma-7b-it", "gemma-1.1-2b-it", "gemma-1.1-7b-it", "gemma-2-2b-it", "gemma-2-9b-it",
    "gemma-2-27b-it", "recurrentgemma-2b", "recurrentgemma-2b-it", "recurrentgemma-9b", "recurrentgemma-9b-it",
)  # fmt: skip
"""Columns of the rows below."""

_ROWS: Mapping[str, tuple[float | None, ...]] = {
    "RealToxicity": (6.86, 7.90, 7.03, 8.04, 8.16, 8.25, 8.84, 9.8, 7.6, 10.3, 8.8),
    "BOLD": (45.57, 49.08, 47.76, 45.2, None, None, None, 39.3, 52.3, 39.8, 47.9),
    "CrowS-Pairs": (45.82, 51.33, 45.89, 49.67, 37.67, 37.47, 36.67, 41.1, 43.4, 38.7, 39.5),
    "BBQ Ambig": (62.58, 92.54, 58.97, 86.06, 83.20, 88.58, 85.99, 62.6, 71.1, 95.9, 67.1),
    "BBQ Disambig": (54.62, 71.99, 53.9, 85.08, 69.31, 82.67, 86.94, 58.4, 50.8, 78.6, 78.9),
    "Winogender": (51.25, 54.17, 50.14, 57.64, 52.91, 79.17, 77.22, 55.1, 54.7, 59.0, 64.0),
    "TruthfulQA": (31.81, 44.84, 44.24, 45.34, 43.72, 50.27, 51.60, 35.1, 42.7, 38.6, 47.7),
}


def published(title: str) -> dict[str, float]:
    """Return the scores of a benchmark by variant."""
    return {variant: score for variant, score in zip(VARIANTS, _ROWS[title], strict=True) if score is not None}
