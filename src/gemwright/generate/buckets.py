"""Few shapes: the chunk sizes in which prompts are fed and the capacities by which caches grow.

A model compiles two prefill programs per chunk size and capacity, one of them for a prompt's end, and one decoding
program per capacity. Speculation has one decoding program per size and capacity.
"""

import time

CHUNKS = (32, 128, 512)
"""Tokens of a prompt that are fed in one call."""
CAPACITIES = (1024, 4096, 16_384, 65_536, 131_072)
"""Tokens that a cache has room for."""
VERIFIED = (4, 8)
"""Tokens of a row, the pending one and guesses, that speculation verifies in one call."""

CALL_SECONDS = 0.05
"""A call that decodes should take no longer, for texts to appear smoothly and to end soon."""


class StepsPerCall:
    """How many tokens to decode in the next call: one at first, which is wanted soon, then by how long they take."""

    def __init__(self, most: int):
        self.count = 1
        self._most = most
        self._last: float | None = None

    def record(self, count: int) -> None:
        """Learn that `count` more tokens have come."""
        now = time.perf_counter()
        if self._last is not None:
            self.count = max(1, min(self._most, int(CALL_SECONDS * count / (now - self._last))))
        self._last = now


def chunk(rest: int, least: int = 0) -> int:
    """The next chunk of a prompt that has `rest` tokens left, the first `least` of which cannot be parted.

    At most half of it is padding, unless it is the smallest or one that cannot be parted.
    """
    if least > CHUNKS[-1]:
        return -(-least // CHUNKS[-1]) * CHUNKS[-1]
    covering = [size for size in CHUNKS if size >= rest]
    if covering and (covering[0] <= 2 * rest or covering[0] == CHUNKS[0]):
        return covering[0]
    return next(size for size in CHUNKS if size >= max(least, max(size for size in CHUNKS if size <= rest)))


def capacity(length: int, context: int) -> int:
    """Room to give a cache that must hold `length` tokens, of a model whose context is `context`."""
    enough = [size for size in CAPACITIES if size >= length]
    return min(enough[0] if enough else context, context)
