"""Measure what a shield costs: the time to judge a text, and the speed of a reply that is screened.

python bench/shield.py --shield gemma-3-270m

Each round measures all variants in turn, and the medians of the rounds are printed. The scores do not matter: no policy
refuses anything.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from statistics import median

import gemwright
from gemwright.shield.classifier import Shield
from gemwright.shield.policy import Policy
from gemwright.shield.screen import screen

NAMES = ("hate speech", "dangerous content", "harassment", "sexually explicit content")
POLICIES = tuple(
    Policy(name, {"input": f"No {name}: a text shall not contain or ask for {name}.", "output": f"No {name}."}, 1.0)
    for name in NAMES
)
PROMPT = "The lighthouse keeper climbed the stairs every evening, and he thought of"
WORDS = (20, 200)
"""Numbers of words of the texts that are judged."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--shield", default="gemma-3-270m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()
    model = gemwright.load(options.model)
    judge = model if options.shield == options.model else gemwright.load(options.shield)
    shield = Shield(judge, POLICIES)
    alone = [Shield(judge, (policy,)) for policy in POLICIES]
    print(f"{'':34}{'together':>12}{'one by one':>12}")
    for words in WORDS:
        text = " ".join(("sea", "wind", "lamp", "stone")[index % 4] for index in range(words))
        together = lambda text=text: shield.score(text)  # noqa: E731
        one_by_one = lambda text=text: [each.score(text) for each in alone]  # noqa: E731
        times = compare(options.rounds, together, one_by_one)
        print(f"{f'4 policies, {words} words, seconds':34}{times[0]:12.3f}{times[1]:12.3f}", flush=True)
    plain: list[tuple[float, float]] = []
    screened: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        plain.append(reply(model, options.max_tokens, lambda pieces: pieces))
        screened.append(reply(model, options.max_tokens, lambda pieces: screen(shield, PROMPT, pieces)))
    print(f"{'':34}{'plain':>12}{'screened':>12}")
    for row, name in enumerate(("seconds to the first text", "tokens/s")):
        print(f"{name:34}" + "".join(f"{median(each[row] for each in runs):12.2f}" for runs in (plain, screened)))


def compare(rounds: int, *functions: Callable[[], object]) -> list[float]:
    """Return the median seconds of each function, called in turn, after one call each."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for taken, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [median(taken[1:]) for taken in seconds]


def reply(model: gemwright.Model, tokens: int, shown: Callable[[Iterable[str]], Iterable[str]]) -> tuple[float, float]:
    """Return the seconds until the first text of a reply is shown, and its tokens per second."""
    start, first = time.perf_counter(), 0.0
    stream = model.stream(PROMPT, max_tokens=tokens, temperature=1.0, seed=0)
    for _ in shown(stream):
        first = first or time.perf_counter() - start
    return first, len(stream.completion.tokens) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
