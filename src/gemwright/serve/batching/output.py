"""The text of one sequence as it grows: detokenized, ended by stop ids and stop strings, with log-probabilities."""

from collections import deque
from typing import NamedTuple

from gemwright.serve.batching.request import FinishReason, GenerationRequest, TokenLogprob, Update
from gemwright.text.stop import StopStrings
from gemwright.text.tokenizer import Tokenizer


class _Pending(NamedTuple):
    """A token whose text is not yet released: where its text begins, its id and its log-probability."""

    start: int
    token: int
    logprob: TokenLogprob | None


class Output:
    """Turns the tokens of one request into updates."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer):
        self._request = request
        self._stream = tokenizer.stream(keep_control=not request.skip_control_tokens)
        self._stops = StopStrings(request.stop_strings)
        self._stop_ids = frozenset(request.stop_ids)
        self._pending: deque[_Pending] = deque()
        self._received, self._released = 0, 0
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: FinishReason | None = None
        self._stop: int | str | None = None
        self.generated: list[int] = []
        """All tokens, a stop id that ended the text among them."""

    @property
    def ended(self) -> bool:
        """Whether the text has ended; later tokens are ignored."""
        return self._finish is not None

    def take(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Add a token."""
        if self.ended:
            return
        self.generated.append(token)
        if token in self._stop_ids:
            self.finish("stop", token)
            return
        self._pending.append(_Pending(self._received, token, logprob))
        self._push(self._stream.push(token))
        if not self.ended and len(self.generated) >= self._request.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason, stop: int | str | None = None) -> None:
        """End the text, and release what was held back of it unless a stop string is in there."""
        self._push(self._stream.finish())
        if self.ended:
            return
        self._release(*self._stops.finish())
        if not self.ended:
            self._finish, self._stop, self._released = reason, stop, self._received + 1
            self._take_released()

    def update(self) -> Update | None:
        """Return what was added since the last update; None if nothing was."""
        if not (self._text or self._tokens or self.ended):
            return None
        update = Update("".join(self._text), tuple(self._tokens), tuple(self._logprobs), self._finish, self._stop)
        self._text, self._tokens, self._logprobs = [], [], []
        return update

    def _push(self, text: str) -> None:
        self._received += len(text)
        self._release(*self._stops.push(text))

    def _release(self, text: str, stopped: bool) -> None:
        if text:
            self._text.append(text)
        self._released += len(text)
        if stopped and not self.ended:
            self._finish, self._stop = "stop", self._stops.found
        self._take_released()

    def _take_released(self) -> None:
        """Move tokens to the update whose text begins before the end of the released text."""
        while self._pending and (
            self._pending[0].start < self._released
            or (not self.ended and self._pending[0].start == self._released == self._received)
        ):
            pending = self._pending.popleft()
            self._tokens.append(pending.token)
            if pending.logprob is not None:
                self._logprobs.append(pending.logprob)
