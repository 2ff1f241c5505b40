"""From the engine's tokens to text: detokenize each sequence, find its end and record its tokens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gemwright.generate.programs import NO_TOKEN
from gemwright.generate.step import Step
from gemwright.text.stop import StopStrings
from gemwright.text.tokenizer import TextStream, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """A completed text.

    Attributes:
        text: The text, without the stop string or token that ended it.
        tokens: Its ids, without the stop token.
        logprobs: Natural logarithm of the model's probability of each token; empty unless requested.
        top_logprobs: For each token, the likeliest ids and their log-probabilities; empty unless requested.
        finish_reason: "stop" if a stop token or string ended it, "length" if it was cut off.
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
            _Sequence(tokenizer.stream(), StopStrings(stop_strings), stops, count, seed)
            for count, seed in zip(prompt_tokens, seeds, strict=True)
        ]

    def __iter__(self) -> Iterator[list[str]]:
        for step in self._steps:
            yield [sequence.take(step, index) for index, sequence in enumerate(self._sequences)]
            if all(sequence.ended for sequence in self._sequences):
                return
        yield [sequence.close("length") for sequence in self._sequences]

    @property
    def completions(self) -> list[Completion]:
        """Return the completions so far."""
        return [sequence.completion() for sequence in self._sequences]


@dataclass
class _Sequence:
    stream: TextStream
    stop_strings: StopStrings
    stop_ids: frozenset[int]
    prompt_tokens: int
    seed: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    proposed: int = 0
    accepted: int = 0
    finish_reason: FinishReason = "length"
    ended: bool = False

    def take(self, step: Step, index: int) -> str:
        """Add a step and return its text, which is empty after the end."""
        token = int(step.tokens[index])
        if self.ended:
            return ""
        if token == NO_TOKEN:
            return self.close("length")
        self.proposed += int(step.proposed[index])
        self.accepted += int(step.accepted[index])
        if token in self.stop_ids:
            return self.close("stop")
        self.tokens.append(token)
        if step.logprobs is not None and step.top_tokens is not None and step.top_logprobs is not None:
            self.logprobs.append(float(step.logprobs[index]))
            likeliest = zip(step.top_tokens[index].tolist(), step.top_logprobs[index].tolist(), strict=True)
            self.top_logprobs.append(dict(likeliest))
        return self._write(*self.stop_strings.push(self.stream.push(token)))

    def close(self, finish_reason: FinishReason) -> str:
        """End the text and return what was held back of it."""
        if self.ended:
            return ""
        piece = self._write(*self.stop_strings.push(self.stream.finish()))
        if not self.ended:
            piece += self._write(*self.stop_strings.finish())
        if not self.ended:
            self.finish_reason, self.ended = finish_reason, True
        return piece

    def _write(self, piece: str, stopped: bool) -> str:
        self.text += piece
        if stopped:
            self.finish_reason, self.ended = "stop", True
        return piece

    def completion(self) -> Completion:
        """Return a copy of the record so far."""
        return Completion(
            self.text,
            list(self.tokens),
            list(self.logprobs),
            list(map(dict, self.top_logprobs)),
            self.finish_reason,
            self.prompt_tokens,
            self.proposed,
            self.accepted,
            self.seed,
        )
