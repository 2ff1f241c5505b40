"""The results of a comparison as Markdown and JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gemwright.eval.compare.results import Duel, Results
from gemwright.eval.compare.statistics import MEAN_RATING, POINTS_PER_DECADE, RESAMPLES, Estimate

MAX_NAMED = 10
"""Maximum number of replies without a verdict that are named in the text."""


@dataclass(frozen=True)
class Setting:
    """How a comparison was made.

    Attributes:
        prompts: File of the prompts.
        max_tokens: Maximum number of tokens of an answer.
        judge: Name of the model that judged; None for a person.
        date: Day of the report.
    """

    prompts: str
    max_tokens: int
    judge: str | None
    date: str


def format_markdown(setting: Setting, results: Results, plots: Sequence[str]) -> str:
    """Return the results as Markdown, with links to the plots beside it."""
    parts = [
        "# Comparison",
        f"{setting.date}: {results.prompts} prompts of {_code(setting.prompts)}, answers of at most "
        f"{setting.max_tokens} tokens, judged by {_judge(setting)}.",
        format_duels(results),
        "The win rate counts a tie as half a win. Brackets have 95% intervals over prompts.",
        *(_ratings(results) if len(results.labels) > 2 else ()),
        *(_categories(results)),
        "## Checks",
        "\n".join(f"- {line}" for line in format_checks(setting, results)),
        *(f"![{name.partition('.')[0].replace('_', ' ')}]({name})" for name in plots),
    ]
    return "\n\n".join(parts) + "\n"


def _judge(setting: Setting) -> str:
    return "a person" if setting.judge is None else f"{_code(setting.judge)}, each pair in both orders"


def format_duels(results: Results) -> str:
    """Return the results of all pairs of candidates as a table."""
    rows = [
        (
            _code(duel.first),
            _code(duel.second),
            _percent(duel.rate),
            f"{duel.wins}/{duel.ties}/{duel.losses}",
            _note(duel),
        )
        for duel in results.duels
    ]
    return _table(("candidate", "against", "win rate", "wins/ties/losses", ""), rows)


def _note(duel: Duel) -> str:
    if duel.rate is None:
        return "no verdicts"
    is_decided = duel.rate.low > 0.5 or duel.rate.high < 0.5
    verdict = "the interval excludes 50%" if is_decided else "no difference shown"
    return verdict + (f"; {duel.unjudged} not judged" if duel.unjudged else "")


def _ratings(results: Results) -> Iterator[str]:
    yield "## Ratings"
    if results.ratings is None:
        yield (
            "There are no Bradley-Terry ratings: a candidate, or a group of them, won or lost everything against the "
            "rest, so its rating would be infinite."
        )
        return
    order = sorted(range(len(results.labels)), key=lambda index: -results.ratings.values[index].value)  # pyright: ignore[reportOptionalMemberAccess]
    yield _table(
        ("candidate", "rating"),
        [(_code(results.labels[index]), _rating(results.ratings.values[index])) for index in order],
    )
    left_out = results.ratings.left_out
    yield (
        f"Bradley-Terry by maximum likelihood, a tie as half a win: {POINTS_PER_DECADE} points more are odds of 10 to "
        f"1, the mean is {MEAN_RATING}. Brackets have 95% intervals over {RESAMPLES} resamples of the prompts"
        + (f", without {left_out} in which a candidate won or lost everything." if left_out else ".")
    )


def _categories(results: Results) -> Iterator[str]:
    names = sorted({name for duel in results.duels for name in duel.categories})
    if not names:
        return
    yield "## Win rates by category"
    rows = [
        (_code(duel.first), _code(duel.second), *(_percent(duel.categories.get(name)) for name in names))
        for duel in results.duels
    ]
    yield _table(("candidate", "against", *names), rows)


def format_checks(setting: Setting, results: Results) -> list[str]:
    """Return sentences on what a reader must know to trust the numbers."""
    seat = "on the left" if setting.judge is None else "that was shown first"
    lines = [f"The answer {seat} won {_percent(results.shown_first)} of the verdicts for one of two answers."]
    if results.agreement is not None:
        lines.append(
            f"Both orders have the same verdict on {_percent(results.agreement)} of the pairs; others are ties."
        )
    if results.as_person is not None:
        lines.append(f"A person gave the same verdict on {_percent(results.as_person)} of the pairs that both judged.")
    lines.append(f"The longer answer won {_percent(results.longer)} of the pairs with a winner.")
    equal = sum(duel.equal for duel in results.duels)
    lines += [f"{equal} pairs have equal answers, and are ties."] * (equal > 0)
    for label in results.labels:
        cut = results.cut[label]
        lines.append(
            f"Answers of {_code(label)}: {results.characters[label]:,.0f} characters on average"
            + (f", {cut} of {results.prompts} cut at {setting.max_tokens} tokens." if cut else ".")
        )
    if failed := results.without_verdict:
        named = "; ".join(f"prompt {_code(prompt)}, {_code(left)} first" for prompt, left, _ in failed[:MAX_NAMED])
        more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
        lines.append(
            f"{len(failed)} replies of the judge have no verdict, and their pairs are not counted: {named}{more}."
        )
    return lines


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    value, low, high = (100 * part for part in estimate)
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def _rating(estimate: Estimate) -> str:
    value, low, high = estimate
    return f"{value:.0f} [{low:.0f}, {high:.0f}]" if math.isfinite(low) else f"{value:.0f} [unknown]"


def _code(text: str) -> str:
    """Return a name as code in a cell of a table."""
    return (
        "`" + "".join(" " if ord(letter) < 32 else letter for letter in text).replace("`", "'").replace("|", "/") + "`"
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_json(setting: Setting, results: Results) -> dict[str, Any]:
    """Return the results as JSON; intervals are [value, low, high], unknown ends null."""
    return _finite({"setting": asdict(setting), **asdict(results)})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        named = getattr(value, "_asdict", None)
        return _finite(named()) if named else [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
