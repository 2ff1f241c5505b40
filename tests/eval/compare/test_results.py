"""Results of outcomes that are written out, against counts by hand."""

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from PIL import Image

from gemwright.eval.compare.answers import Answer
from gemwright.eval.compare.pairs import Outcome, Pair, Shown
from gemwright.eval.compare.plots import RATINGS, WIN_RATES, plot
from gemwright.eval.compare.prompts import Prompt
from gemwright.eval.compare.report import Setting, format_markdown
from gemwright.eval.compare.results import Duel, summarize
from gemwright.eval.compare.statistics import Estimate, Ratings, estimate_rate

SCORES = (1.0, 0.5, 0.0, None, 0.5)
VERDICTS = (
    {False: "left", True: "right"},
    {False: "left", True: "left"},
    {False: "right", True: "left"},
    {False: None, True: "left"},
    {},
)
PROMPTS = [Prompt(str(number), ("Who?",), "ab"[number % 2]) for number in range(5)]
TEXTS = (("long", "x"), ("x", "long"), ("long", "x"), ("a", "b"), ("same", "same"))
PAIRS = [
    Pair(prompt, Shown("a|b", (one,)), Shown("c`d\n", (other,)))
    for prompt, (one, other) in zip(PROMPTS, TEXTS, strict=True)
]
OUTCOMES = [Outcome(*row) for row in zip(PAIRS, VERDICTS, SCORES, strict=True)]
PERSON = [Outcome(pair, {}, score) for pair, score in zip(PAIRS, (1.0, 1.0, None, 0.0, 0.5), strict=True)]
ANSWERS = {
    (pair.prompt.name, shown.label): Answer(shown.turns, cut=pair.prompt.name == "0")
    for pair in PAIRS
    for shown in (pair.first, pair.second)
}
RESULTS = summarize(PROMPTS, ["a|b", "c`d\n"], ANSWERS, OUTCOMES, PERSON)


def test_counts():
    (duel,) = RESULTS.duels
    assert (duel.wins, duel.ties, duel.losses, duel.equal, duel.unjudged) == (1, 2, 1, 1, 1)
    assert duel.rate is not None
    assert duel.rate.value == 0.5
    assert {name: found.value for name, found in duel.categories.items()} == {"a": 0.5, "b": 0.5}
    assert RESULTS.ratings is None
    assert RESULTS.without_verdict == [("3", "a|b", "c`d\n")]
    assert RESULTS.cut == {"a|b": 1, "c`d\n": 1}


def test_shares():
    shares = [RESULTS.shown_first, RESULTS.agreement, RESULTS.as_person, RESULTS.longer]
    assert all(shares)
    assert [found and found.value for found in shares] == [5 / 7, 2 / 3, 1 / 2, 1 / 2]


def test_plots_of_extreme_results(tmp_path: Path):
    """A side that wins or loses everything, names with formulas and letters that the font lacks, unknown ends."""
    labels = ["a$x^2$", "b" * 200, "\u4f60\u597d"]
    duels = [
        Duel(one, other, *counts, estimate_rate([1.0] * counts[0] + [0.5] * counts[1] + [0.0] * counts[2]), 0, 0, {})
        for (one, other), counts in zip(combinations(labels, 2), ((20, 0, 0), (0, 20, 0), (0, 0, 20)), strict=True)
    ]
    ratings = Ratings(
        [Estimate(900.0, 910.0, 950.0), Estimate(1000.0, math.nan, math.nan), Estimate(1e5, 0.0, 2e5)], 900
    )
    assert plot(replace(RESULTS, labels=labels, duels=duels, ratings=ratings), tmp_path) == [WIN_RATES, RATINGS]
    for name in (WIN_RATES, RATINGS):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"


def test_names_cannot_break_the_report():
    text = format_markdown(Setting("p.jsonl", 8, "judge", "2026-11-30"), RESULTS, [])
    assert "| `a/b` | `c'd ` | 50.0% [" in text
    assert "1/2/1 | no difference shown; 1 not judged |" in text
    assert "1 replies of the judge have no verdict" in text
