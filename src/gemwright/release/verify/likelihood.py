"""The likelihood of texts that every Gemma knows, which tells weights of a language model from damaged ones."""

from collections.abc import Mapping
from types import MappingProxyType

from gemwright.api import Model
from gemwright.release.verify.report import Check, passes

TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "Declaration of Independence": (
            "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their "
            "Creator with certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness."
        ),
        "Gettysburg Address": (
            "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in "
            "Liberty, and dedicated to the proposition that all men are created equal."
        ),
        "Alice in Wonderland": (
            "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: "
            "once or twice she had peeped into the book her sister was reading, but it had no pictures or "
            "conversations in it."
        ),
        "code": (
            "def fibonacci(n):\n    if n <= 1:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\n\n"
            'if __name__ == "__main__":\n    for i in range(10):\n        print(fibonacci(i))\n'
        ),
    }
)
"""Texts in the public domain, and a function that everyone has written."""
LARGEST_NLL = 4.0
"""Bound on the mean negative log-likelihood per token, in nats."""


def check_likelihood(model: Model) -> Check:
    """Check that the texts are likely.

    Raises:
        NotFiniteError: The logits are not finite.
    """
    scores = [score.logprobs for score in model.score(list(TEXTS.values()))]
    each = {name: -sum(part) / len(part) for name, part in zip(TEXTS, scores, strict=True)}
    mean = -sum(map(sum, scores)) / sum(map(len, scores))
    listed = ", ".join(f"{name} {value:.2f}" for name, value in each.items())
    detail = f"{mean:.2f} nats a token, at most {LARGEST_NLL} ({listed})"
    return passes("likelihood", mean <= LARGEST_NLL, detail, nll=mean, bound=LARGEST_NLL)
