"""The queue of requests that wait for a slot, bounded by their number and by the tokens of their prompts."""

from collections import deque
from collections.abc import Collection

from gemwright.errors import RequestError
from gemwright.serve.batching.generation import Generation

RETRY_SECONDS = 2
"""Time after which a client may try again if the queue is full."""


class WaitingQueue:
    """Requests in the order of their arrival.

    Args:
        most: Maximum number of requests.
        most_tokens: Maximum number of tokens of all prompts.
    """

    def __init__(self, most: int, most_tokens: int):
        self._most, self._most_tokens = most, most_tokens
        self._waiting: deque[Generation] = deque()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, generation: Generation) -> None:
        """Add a request.

        Raises:
            RequestError: The queue is full (429).
        """
        if len(self) >= self._most or self._tokens + generation.prompt_tokens > self._most_tokens:
            raise RequestError(
                f"The queue is full: {len(self)} requests wait; try again later.",
                status=429,
                code="queue_full",
                retry_after=RETRY_SECONDS,
            )
        self._waiting.append(generation)
        self._tokens += generation.prompt_tokens

    def pop(self) -> Generation | None:
        """Remove and return the first request, if there is one."""
        if not self._waiting:
            return None
        generation = self._waiting.popleft()
        self._tokens -= generation.prompt_tokens
        return generation

    def remove(self, generations: Collection[Generation]) -> None:
        """Remove those requests that are in the queue."""
        self._waiting = deque(each for each in self._waiting if each not in generations)
        self._tokens = sum(each.prompt_tokens for each in self._waiting)

    def clear(self) -> list[Generation]:
        """Remove and return all requests."""
        waiting = list(self._waiting)
        self.remove(waiting)
        return waiting
