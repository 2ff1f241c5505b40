"""Measure what a shield costs: the time to judge a text, and the speed of a reply that is screened.

python bench/shield.py --shield gemma-3-270m

Each round measures both variants in turn, and the medians of the rounds are printed, of the time of all threads and of
the clock. The scores do not matter: no policy refuses anything.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
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
    print(f"{'seconds of CPU (of clock)':34}{'together':>20}{'one by one':>20}")
    for words in WORDS:
        text = " ".join(("sea", "wind", "lamp", "stone")[index % 4] for index in range(words))
        times = compare(options.rounds, partial(shield.score, text), partial(score_all, alone, text))
        print(f"{f'4 policies, {words} words':34}" + cells(times), flush=True)
    firsts: list[list[float]] = [[], []]
    plain = partial(reply, model, options.max_tokens, iter, firsts[0])
    screened = partial(reply, model, options.max_tokens, partial(screen, shield, PROMPT), firsts[1])
    print(f"{'':34}{'plain':>20}{'screened':>20}")
    print(f"{f'a reply of {options.max_tokens} tokens':34}" + cells(compare(options.rounds, plain, screened)))
    print(f"{'clock until the first text':34}" + "".join(f"{median(each[1:]):20.3f}" for each in firsts))


def compare(rounds: int, *functions: Callable[[], object]) -> list[tuple[float, float]]:
    """Return the median seconds of CPU and of the clock of each function, called in turn, after one call each."""
    seconds: list[list[tuple[float, float]]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for taken, function in zip(seconds, functions, strict=True):
            cpu, clock = time.process_time(), time.perf_counter()
            function()
            taken.append((time.process_time() - cpu, time.perf_counter() - clock))
    return [(median(cpu for cpu, _ in taken[1:]), median(clock for _, clock in taken[1:])) for taken in seconds]


def cells(times: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{f'{cpu:.2f} ({clock:.2f})':>20}" for cpu, clock in times)


def score_all(shields: Sequence[Shield], text: str) -> None:
    for shield in shields:
        shield.score(text)


def reply(
    model: gemwright.Model, tokens: int, shown: Callable[[Iterable[str]], Iterable[str]], firsts: list[float]
) -> None:
    """Generate a reply, and record the seconds until its first text is shown."""
    start, first = time.perf_counter(), None
    for _ in shown(model.stream(PROMPT, max_tokens=tokens, temperature=1.0, seed=0)):
        first = first or time.perf_counter() - start
    firsts.append(first or 0.0)


if __name__ == "__main__":
    main()
