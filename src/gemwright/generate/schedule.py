"""Few shapes: the chunk sizes in which prompts are fed and the capacities by which caches grow.

A model compiles one prefill program per chunk size and capacity, and one decoding program per capacity.
"""

CHUNKS = (32, 128, 512)
"""Tokens of a prompt that are fed in one call."""
CAPACITIES = (1024, 4096, 16_384, 65_536, 131_072)
"""Tokens that a cache has room for."""


def chunks(length: int) -> list[int]:
    """Chunk sizes that cover `length` tokens, at most half of the last one padding unless it is the smallest."""
    sizes: list[int] = []
    while length > 0:
        sizes.append(_next_chunk(length))
        length -= sizes[-1]
    return sizes


def _next_chunk(rest: int) -> int:
    covering = [size for size in CHUNKS if size >= rest]
    if covering and (covering[0] <= 2 * rest or covering[0] == CHUNKS[0]):
        return covering[0]
    return max(size for size in CHUNKS if size <= rest)


def capacity(length: int, context: int) -> int:
    """Room to give a cache that must hold `length` tokens, of a model whose context is `context`."""
    enough = [size for size in CAPACITIES if size >= length]
    return min(enough[0] if enough else context, context)
