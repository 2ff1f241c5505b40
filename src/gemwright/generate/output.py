"""From the engine's tokens to text: one writer per row detokenises, watches for the end and keeps the record."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gemwright.generate.step import Step
from gemwright.text.stop import StopStrings
from gemwright.text.tokenizer import TextStream, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: Without the stop string or token that ended it.
        tokens: Its ids, the stop token not among them.
        logprobs: Natural logarithm of the model's probability of each token; empty unless asked for.
        top_logprobs: For each token the likeliest ids and their log-probabilities, as many as were asked for.
        finish_reason: "stop" if the model or a stop string ended it, "length" if it was cut off.
        prompt_tokens: Length of the prompt in tokens.
        proposed: Tokens that speculation guessed.
        accepted: Guesses that stood.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]
    finish_reason: FinishReason
    prompt_tokens: int
    proposed: int = 0
    accepted: int = 0


class Stream:
    """The pieces of a text as they are written, and the whole of it once they are all there."""

    def __init__(self, batches: "OutputBatch"):
        self._batch = batches

    def __iter__(self) -> Iterator[str]:
        return (pieces[0] for pieces in self._batch if pieces[0])

    @property
    def completion(self) -> Completion:
        """What has been written so far; all of it after the last piece."""
        return self._batch.completions[0]


class OutputBatch:
    """Rows that are written together. Iterating gives the new text of every row at each step."""

    def __init__(
        self,
        steps: Iterable[Step],
        tokenizer: Tokenizer,
        prompt_tokens: Sequence[int],
        stop_ids: Iterable[int],
        stop_strings: Sequence[str],
    ):
        stops = frozenset(stop_ids)
        self._steps = steps
        self._rows = [_Sequence(tokenizer.stream(), StopStrings(stop_strings), stops, count) for count in prompt_tokens]

    def __iter__(self) -> Iterator[list[str]]:
        for step in self._steps:
            yield [row.take(step, index) for index, row in enumerate(self._rows)]
            if all(row.ended for row in self._rows):
                return
        yield [row.close("length") for row in self._rows]

    @property
    def completions(self) -> list[Completion]:
        """What has been written so far."""
        return [row.completion() for row in self._rows]


@dataclass
class _Sequence:
    stream: TextStream
    stop_strings: StopStrings
    stop_ids: frozenset[int]
    prompt_tokens: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    proposed: int = 0
    accepted: int = 0
    finish_reason: FinishReason = "length"
    ended: bool = False

    def take(self, step: Step, row: int) -> str:
        """The text that a step adds; empty once the row has ended."""
        token = int(step.tokens[row])
        if self.ended:
            return ""
        self.proposed += int(step.proposed[row])
        self.accepted += int(step.accepted[row])
        if token in self.stop_ids:
            return self.close("stop")
        self.tokens.append(token)
        if step.logprobs is not None and step.top_tokens is not None and step.top_logprobs is not None:
            self.logprobs.append(float(step.logprobs[row]))
            likeliest = zip(step.top_tokens[row].tolist(), step.top_logprobs[row].tolist(), strict=True)
            self.top_logprobs.append(dict(likeliest))
        return self._write(*self.stop_strings.push(self.stream.push(token)))

    def close(self, finish_reason: FinishReason) -> str:
        """The text that was held back, at the end of the row."""
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
        return Completion(
            self.text,
            self.tokens,
            self.logprobs,
            self.top_logprobs,
            self.finish_reason,
            self.prompt_tokens,
            self.proposed,
            self.accepted,
        )
