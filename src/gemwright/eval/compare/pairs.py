"""Pairs of answers to the same prompt, and the judgements on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple, TypeAlias

from gemwright.eval.compare.answers import Answers
from gemwright.eval.compare.prompts import Prompt
from gemwright.eval.store import make_key

Verdict: TypeAlias = Literal["left", "right", "tie"]
"""Which of two answers is better."""


class Shown(NamedTuple):
    """The answers of a candidate as a judge sees them, and its label, which a judge does not see."""

    label: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt.

    Attributes:
        prompt: The prompt.
        first: Answer of the candidate that was given first on the command line.
        second: Answer of the other.
    """

    prompt: Prompt
    first: Shown
    second: Shown

    @property
    def is_equal(self) -> bool:
        """Whether the answers are the same text, which is a tie that nobody is asked about."""
        return self.first.turns == self.second.turns

    def order(self, is_swapped: bool) -> tuple[Shown, Shown]:
        """Return the answers on the left and on the right: the first and the second, or swapped."""
        return (self.second, self.first) if is_swapped else (self.first, self.second)

    def key(self, judge: Sequence[Any], is_swapped: bool) -> str:
        """Return the key of a judgement; it changes if the judge, the prompt, an answer or their order does."""
        left, right = self.order(is_swapped)
        return make_key("judgement", judge, self.prompt.turns, left.turns, right.turns)

    def record(self, judge: Sequence[Any], is_swapped: bool, verdict: Verdict | None, **more: Any) -> dict[str, Any]:
        """Return a judgement as it is stored."""
        left, right = self.order(is_swapped)
        named = {"prompt": self.prompt.name, "left": left.label, "right": right.label}
        return {"key": self.key(judge, is_swapped), **named, "verdict": verdict, **more}


def make_pairs(prompts: Sequence[Prompt], labels: Sequence[str], answers: Answers) -> list[Pair]:
    """Return the pairs of all candidates for each prompt."""
    return [
        Pair(
            prompt,
            Shown(first, answers[prompt.name, first].turns),
            Shown(second, answers[prompt.name, second].turns),
        )
        for first, second in combinations(labels, 2)
        for prompt in prompts
    ]


class Outcome(NamedTuple):
    """What the judgements on a pair say.

    Attributes:
        pair: The pair.
        verdicts: Verdict by order: not swapped and swapped. An order that was not shown is absent; a reply of a judge
            without a verdict is None.
        score: Points of the first answer: 1, 1/2 for a tie, 0; None without a verdict.
    """

    pair: Pair
    verdicts: Mapping[bool, Verdict | None]
    score: float | None


def find_outcome(pair: Pair, judge: Sequence[Any], records: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """Return the outcome of a pair: equal answers are a tie, and so are orders that contradict each other.

    Args:
        pair: The pair.
        judge: Who judged, as in the keys.
        records: Judgements by their keys; one that was withdrawn does not count.
    """
    if pair.is_equal:
        return Outcome(pair, {}, 0.5)
    verdicts: dict[bool, Verdict | None] = {
        is_swapped: records[key].get("verdict")
        for is_swapped in (False, True)
        if (key := pair.key(judge, is_swapped)) in records and not records[key].get("withdrawn")
    }
    points = {_points(verdict, is_swapped) for is_swapped, verdict in verdicts.items()}
    if not points or None in points:
        return Outcome(pair, verdicts, None)
    return Outcome(pair, verdicts, points.pop() if len(points) == 1 else 0.5)


def _points(verdict: Verdict | None, is_swapped: bool) -> float | None:
    """Return the points of the first answer."""
    if verdict == "tie":
        return 0.5
    return float((verdict == "left") != is_swapped) if verdict in ("left", "right") else None
