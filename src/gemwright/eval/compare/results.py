"""What the judgements of a comparison amount to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gemwright.eval.compare.answers import Answers
from gemwright.eval.compare.pairs import Outcome
from gemwright.eval.compare.prompts import Prompt
from gemwright.eval.compare.statistics import Estimate, Ratings, estimate_rate, estimate_share, rate

MAX_CATEGORIES = 20
"""Maximum number of categories for which results are reported."""


@dataclass(frozen=True)
class Duel:
    """The result of one candidate against another.

    Attributes:
        first, second: Their labels.
        wins, ties, losses: Number of prompts, for the first.
        rate: Win rate of the first, ties split evenly; None if nothing was judged.
        equal: Number of the ties whose answers are the same text.
        unjudged: Number of prompts without a verdict.
        categories: Win rate of the first by category.
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    rate: Estimate | None
    equal: int
    unjudged: int
    categories: Mapping[str, Estimate]


@dataclass(frozen=True)
class Results:
    """The results of a comparison.

    Attributes:
        labels: The candidates, in their order.
        prompts: Number of prompts.
        duels: Results of all pairs of candidates.
        ratings: Bradley-Terry ratings of three or more candidates; None if there are fewer or they do not exist.
        shown_first: Share of the verdicts for one of two answers that are for the one shown first, or on the left.
        agreement: Share of the pairs on which both orders have the same verdict; None if one order was shown.
        as_person: Share of the pairs which a person judged too that have the same outcome; None if there are none.
        longer: Share of the pairs with a winner and answers of different lengths that the longer one won.
        without_verdict: Prompts and candidates (left and right) of replies of the judge without a verdict.
        cut: Number of answers of each candidate that were cut at the maximum number of tokens.
        characters: Mean length of an answer of each candidate, in characters.
    """

    labels: Sequence[str]
    prompts: int
    duels: Sequence[Duel]
    ratings: Ratings | None
    shown_first: Estimate | None
    agreement: Estimate | None
    as_person: Estimate | None
    longer: Estimate | None
    without_verdict: Sequence[tuple[str, str, str]]
    cut: Mapping[str, int]
    characters: Mapping[str, float]


def summarize(
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    answers: Answers,
    outcomes: Sequence[Outcome],
    by_person: Sequence[Outcome] = (),
) -> Results:
    """Return the results of outcomes, which may be compared with those of a person on the same pairs."""
    categories = {prompt.name: prompt.category for prompt in prompts if prompt.category is not None}
    if not 1 < len(set(categories.values())) <= MAX_CATEGORIES:
        categories = {}
    groups: dict[tuple[str, str], list[Outcome]] = {labels: [] for labels in combinations(labels, 2)}
    for one in outcomes:
        groups[one.pair.first.label, one.pair.second.label].append(one)
    return Results(
        labels=labels,
        prompts=len(prompts),
        duels=[_duel(*pair, group, categories) for pair, group in groups.items()],
        ratings=rate(_points(prompts, labels, outcomes)) if len(labels) > 2 else None,
        shown_first=_shown_first(outcomes),
        agreement=_agreement(outcomes),
        as_person=_compare(outcomes, by_person) if by_person else None,
        longer=_longer(outcomes),
        without_verdict=[
            (one.pair.prompt.name, left.label, right.label)
            for one in outcomes
            for is_swapped, verdict in one.verdicts.items()
            for left, right in [one.pair.order(is_swapped)]
            if verdict is None
        ],
        cut={label: sum(answers[prompt.name, label].cut for prompt in prompts) for label in labels},
        characters={
            label: math.fsum(len("".join(answers[prompt.name, label].turns)) for prompt in prompts) / len(prompts)
            for label in labels
        },
    )


def _duel(first: str, second: str, outcomes: Sequence[Outcome], categories: Mapping[str, str]) -> Duel:
    scores = {one.pair.prompt.name: one.score for one in outcomes if one.score is not None}
    grouped: dict[str, list[float]] = {}
    for name, score in scores.items():
        if name in categories:
            grouped.setdefault(categories[name], []).append(score)
    values = list(scores.values())
    rates = {category: estimate_rate(group) for category, group in sorted(grouped.items())}
    return Duel(
        first=first,
        second=second,
        wins=values.count(1.0),
        ties=values.count(0.5),
        losses=values.count(0.0),
        rate=estimate_rate(values),
        equal=sum(one.pair.is_equal for one in outcomes),
        unjudged=len(outcomes) - len(values),
        categories={category: found for category, found in rates.items() if found is not None},
    )


def _points(prompts: Sequence[Prompt], labels: Sequence[str], outcomes: Sequence[Outcome]) -> np.ndarray:
    """Return the points of each candidate against each other [prompts, candidates, candidates]."""
    rows = {prompt.name: index for index, prompt in enumerate(prompts)}
    places = {label: index for index, label in enumerate(labels)}
    points = np.zeros((len(prompts), len(labels), len(labels)))
    for pair, _, score in outcomes:
        if score is not None:
            row, first, second = rows[pair.prompt.name], places[pair.first.label], places[pair.second.label]
            points[row, first, second], points[row, second, first] = score, 1 - score
    return points


def _shown_first(outcomes: Sequence[Outcome]) -> Estimate | None:
    verdicts = [verdict for one in outcomes for verdict in one.verdicts.values()]
    return estimate_share(verdicts.count("left"), verdicts.count("left") + verdicts.count("right"))


def _agreement(outcomes: Sequence[Outcome]) -> Estimate | None:
    swapped = {"left": "right", "right": "left", "tie": "tie"}
    both = [one.verdicts for one in outcomes if len(one.verdicts) == 2 and None not in one.verdicts.values()]
    return estimate_share(sum(swapped[str(one[True])] == one[False] for one in both), len(both))


def _compare(outcomes: Sequence[Outcome], others: Sequence[Outcome]) -> Estimate | None:
    scores = [(one.score, other.score) for one, other in zip(outcomes, others, strict=True) if not one.pair.is_equal]
    both = [pair for pair in scores if None not in pair]
    return estimate_share(sum(one == other for one, other in both), len(both))


def _longer(outcomes: Sequence[Outcome]) -> Estimate | None:
    decided: list[bool] = []
    for pair, _, score in outcomes:
        first, second = (len("".join(shown.turns)) for shown in (pair.first, pair.second))
        if score in (0.0, 1.0) and first != second:
            decided.append((first > second) == (score == 1.0))
    return estimate_share(sum(decided), len(decided))
