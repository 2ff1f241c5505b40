"""From the engine's tokens to text: detokenize each sequence, find its end and record its tokens."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

from gemwright.generate.programs import NO_TOKEN
from gemwright.generate.step import Step
from gemwright.text.stop import StopStrings
from gemwright.text.tokenizer import TextStream, Tokenizer

FinishReason = Literal["stop", "length", "content_filter"]
T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """A completed text.

    Attributes:
        text: The text, without the stop string or token that ended it.
        tokens: Its ids, without the stop token or those of the stop string.
        logprobs: Natural logarithm of the model's probability of each token; empty unless requested.
        top_logprobs: For each token, the likeliest ids and their log-probabilities; empty unless requested.
        finish_reason: "stop" if a stop token or string ended it, "length" if it was cut off, and
            "content_filter" if a shield refused the rest of it.
        prompt_tokens: Length of the prompt in tokens.
        proposed: Number of draft tokens that were verified.
        accepted: Number of draft tokens that were accepted.
        seed: The seed of its random numbers, which repeats the text. It is not compared: greedy texts do not depend on
            it.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]
    finish_reason: FinishReason
    prompt_tokens: int
    proposed: int = 0
    accepted: int = 0
    seed: int = field(default=0, compare=False)


class Stream(Iterator[str]):
    """A text as an iterator over pieces, and its completion."""

    def __init__(self, batch: "OutputBatch"):
        self._batch = batch
        self._pieces = (pieces[0] for pieces in batch if pieces[0])

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def completion(self) -> Completion:
        """Return the completion so far; it is complete after the last piece."""
        return self._batch.completions[0]


class Detokenizer(Generic[T]):
    """Turns the tokens of one sequence into text, which stop ids and stop strings end.

    A token is released together with the first character of its text; a stop string is dropped with its tokens.

    Args:
        stream: Decodes the tokens.
        stop_strings: Finds stop strings.
        stop_ids: Ids that end the text.

    Attributes:
        finish_reason: Why the text has ended; None if it has not.
        stop: The id or string that ended it, if one did.
    """

    def __init__(self, stream: TextStream, stop_strings: StopStrings, stop_ids: Collection[int]):
        self.finish_reason: FinishReason | None = None
        self.stop: int | str | None = None
        self._stream, self._stop_strings, self._stop_ids = stream, stop_strings, stop_ids
        self._held: deque[tuple[int, int, T]] = deque()
        """Start of its text, id and record of each token that has not been released."""
        self._decoded, self._passed = 0, 0
        """Number of characters decoded so far, and of those that are no part of a stop string."""
        self._text: list[str] = []
        self._tokens: list[tuple[int, T]] = []

    @property
    def ended(self) -> bool:
        """Whether the text has ended; later tokens are ignored."""
        return self.finish_reason is not None

    def push(self, token: int, record: T) -> None:
        """Add a token, and what is recorded of it."""
        if self.ended:
            return
        if token in self._stop_ids:
            self.finish("stop", token)
            return
        self._held.append((self._decoded, token, record))
        self._pass(self._stream.push(token))

    def finish(self, reason: FinishReason, stop: int | None = None) -> None:
        """End the text with what was held back of it, up to a stop string."""
        if self.ended:
            return
        self._pass(self._stream.finish())
        if not self.ended:
            self._release(*self._stop_strings.finish())
        if not self.ended:
            self.finish_reason, self.stop = reason, stop

    def release(self) -> tuple[str, list[tuple[int, T]]]:
        """Return the text and the tokens that were released since the last call."""
        released = "".join(self._text), self._tokens
        self._text, self._tokens = [], []
        return released

    def _pass(self, text: str) -> None:
        self._decoded += len(text)
        self._release(*self._stop_strings.push(text))

    def _release(self, text: str, stopped: bool) -> None:
        self._text.append(text)
        self._passed += len(text)
        # Without text held back, tokens without text, such as part of a character, need not wait.
        while self._held and (self._held[0][0] < self._passed or (self._passed == self._decoded and not stopped)):
            _, token, record = self._held.popleft()
            self._tokens.append((token, record))
        if stopped:
            self.finish_reason, self.stop = "stop", self._stop_strings.found


class OutputBatch:
    """Sequences that are generated together. Iterating gives the new text of every sequence at each step."""

    def __init__(
        self,
        steps: Iterable[Step],
        tokenizer: Tokenizer,
        prompt_tokens: Sequence[int],
        stop_ids: Iterable[int],
        stop_strings: Sequence[str],
        seeds: Sequence[int],
    ):
        stops = frozenset(stop_ids)
        self._steps = steps
        self._sequences = [
            _Sequence(Detokenizer(tokenizer.stream(), StopStrings(stop_strings), stops), count, seed)
            for count, seed in zip(prompt_tokens, seeds, strict=True)
        ]

    def __iter__(self) -> Iterator[list[str]]:
        for step in self._steps:
            yield [sequence.take(step, index) for index, sequence in enumerate(self._sequences)]
            if all(sequence.detokenizer.ended for sequence in self._sequences):
                return
        yield [sequence.close("length") for sequence in self._sequences]

    @property
    def completions(self) -> list[Completion]:
        """Return the completions so far."""
        return [sequence.completion() for sequence in self._sequences]


_Logprobs: TypeAlias = tuple[float, dict[int, float]] | None
"""The log-probability of a token, and those of the likeliest ones."""


@dataclass
class _Sequence:
    detokenizer: Detokenizer[_Logprobs]
    prompt_tokens: int
    seed: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    proposed: int = 0
    accepted: int = 0

    def take(self, step: Step, index: int) -> str:
        """Add a step and return its text, which is empty after the end."""
        token = int(step.tokens[index])
        if token == NO_TOKEN:
            return self.close("length")
        if not self.detokenizer.ended:
            self.proposed += int(step.proposed[index])
            self.accepted += int(step.accepted[index])
            self.detokenizer.push(token, _logprobs_of(step, index))
        return self._record()

    def close(self, finish_reason: FinishReason) -> str:
        """End the text and return what was held back of it."""
        self.detokenizer.finish(finish_reason)
        return self._record()

    def _record(self) -> str:
        text, tokens = self.detokenizer.release()
        self.text += text
        for token, logprobs in tokens:
            self.tokens.append(token)
            if logprobs is not None:
                self.logprobs.append(logprobs[0])
                self.top_logprobs.append(logprobs[1])
        return text

    def completion(self) -> Completion:
        """Return a copy of the record so far."""
        return Completion(
            self.text,
            list(self.tokens),
            list(self.logprobs),
            list(map(dict, self.top_logprobs)),
            self.detokenizer.finish_reason or "length",
            self.prompt_tokens,
            self.proposed,
            self.accepted,
            self.seed,
        )


def _logprobs_of(step: Step, index: int) -> _Logprobs:
    if step.logprobs is None or step.top_tokens is None or step.top_logprobs is None:
        return None
    likeliest = zip(step.top_tokens[index].tolist(), step.top_logprobs[index].tolist(), strict=True)
    return float(step.logprobs[index]), dict(likeliest)
