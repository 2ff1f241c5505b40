"""Sizes of prefill chunks, KV caches and decode calls: few, so that few programs are compiled.

A model compiles two prefill programs per chunk size and capacity, one of them for the end of a prompt, and one decoding
program per capacity. Speculation has one program per number of verified tokens and capacity.
"""

import time

CHUNKS = (32, 128, 512)
"""Numbers of tokens per sequence in a prefill call."""
CAPACITIES = (1024, 4096, 16_384, 65_536, 131_072)
"""Capacities of KV caches in tokens."""
VERIFIED = (4, 8)
"""Numbers of tokens per sequence that speculation verifies in one call: the last token and draft tokens."""

CALL_SECONDS = 0.05
"""Maximum duration of a decode call in seconds, so that text appears smoothly and ends promptly."""


class StepsPerCall:
    """The number of tokens per decode call: one first, then as many as fit in `CALL_SECONDS`."""

    def __init__(self, most: int):
        self.count = 1
        self._most = most
        self._last: float | None = None

    def record(self, count: int) -> None:
        """Record that `count` more tokens have been decoded."""
        now = time.perf_counter()
        if self._last is not None:
            self.count = max(1, min(self._most, int(CALL_SECONDS * count / (now - self._last))))
        self._last = now


def chunk(rest: int, least: int = 0) -> int:
    """Return the size of the next chunk of a prompt with `rest` tokens left, the first `least` of them indivisible.

    At most half of it is padding, unless it is the smallest size or its tokens are indivisible.
    """
    if least > CHUNKS[-1]:
        return -(-least // CHUNKS[-1]) * CHUNKS[-1]
    covering = [size for size in CHUNKS if size >= rest]
    if covering and (covering[0] <= 2 * rest or covering[0] == CHUNKS[0]):
        return covering[0]
    return next(size for size in CHUNKS if size >= max(least, max(size for size in CHUNKS if size <= rest)))


def capacity(length: int, context: int) -> int:
    """Return the capacity of a cache for `length` tokens, at most the model's maximum length `context`."""
    enough = [size for size in CAPACITIES if size >= length]
    return min(enough[0] if enough else context, context)
