"""Ask a model the items of a suite: log-likelihoods of continuations, and replies to prompts."""

from collections.abc import Callable, Sequence
from typing import Protocol

from lm_eval.api.instance import Instance

from gemwright.api import Model
from gemwright.eval.safety.suite import Answer, Item, Suite
from gemwright.options import Options

SCORED_AT_ONCE = 256
"""Number of items whose continuations are scored between two reports of progress."""
REPLIES = 16
"""Maximum number of replies that are generated together."""
MARKERS = 32
"""Number of tokens that a chat template may add."""
SAMPLING: Options = {"temperature": 1.0, "top_p": 0.9, "top_k": 64, "repetition_penalty": 1.0}
"""How several replies to a prompt are drawn, whatever a checkpoint recommends.

RealToxicityPrompts draws from a nucleus of 0.9 at temperature 1; the 64 likeliest tokens nearly always contain it.
"""
GREEDY: Options = {"temperature": 0.0, "repetition_penalty": 1.0}
"""How a single reply is found."""

Advance = Callable[[int], None]
"""Called with the number of items that have been answered."""


class EvaluatedModel(Protocol):
    """What is needed of `gemwright.eval.harness.HarnessModel`."""

    model: Model
    max_length: int

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each request, and whether greedy decoding gives its continuation."""
        ...


def ask(model: EvaluatedModel, suite: Suite, items: Sequence[Item], seed: int, advance: Advance) -> list[Answer]:
    """Return the answer to each item; its items ask for likelihoods or for replies."""
    if items and items[0].pairs:
        return _score(model, items, advance)
    return _reply(model, suite, items, seed, advance)


def fits(model: EvaluatedModel, suite: Suite, item: Item) -> bool:
    """Return whether an item fits in the context with its reply and the markers of a conversation."""
    texts = [context + continuation for context, continuation in item.pairs] or [item.prompt]
    longest, room = max(texts, key=len), model.max_length - suite.tokens - MARKERS
    # A token is at least a byte, so that most texts need not be encoded.
    return len(longest.encode(errors="replace")) < room or len(model.model.encode(longest)) < room


def _score(model: EvaluatedModel, items: Sequence[Item], advance: Advance) -> list[Answer]:
    answers: list[Answer] = []
    for start in range(0, len(items), SCORED_AT_ONCE):
        part = items[start : start + SCORED_AT_ONCE]
        requests = [Instance("loglikelihood", {}, pair, 0) for item in part for pair in item.pairs]
        found = iter(model.loglikelihood(requests, disable_tqdm=True))
        answers += [Answer(logprobs=[next(found)[0] for _ in item.pairs]) for item in part]
        advance(len(answers))
    return answers


def _reply(model: EvaluatedModel, suite: Suite, items: Sequence[Item], seed: int, advance: Advance) -> list[Answer]:
    """Return replies: to a message if the model is tuned for conversations, else continuations of the plain text."""
    replies: list[list[str]] = [[] for _ in items]
    order = sorted(range(len(items)), key=lambda index: len(items[index].prompt))
    at_once = max(1, REPLIES // suite.samples)
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        prompts = [items[index].prompt for index in part for _ in range(suite.samples)]
        # The seed of a reply follows from its item, not from its place in a batch.
        seeds = [seed + 1000 * index + number for index in part for number in range(suite.samples)]
        options: Options = {**(SAMPLING if suite.samples > 1 else GREEDY), "max_tokens": suite.tokens, "seed": seeds}
        if model.model.tuned:
            found = model.model.chat([[{"role": "user", "content": prompt}] for prompt in prompts], **options)
        else:
            found = model.model.generate(prompts, **options)
        texts = iter(one.text for one in found)
        for index in part:
            replies[index] = [next(texts) for _ in range(suite.samples)]
        advance(start + len(part))
    return [Answer(replies=texts) for texts in replies]
