import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemwright.generate.buckets import CAPACITIES, CHUNKS, capacity, chunk


def chunks(length: int) -> list[int]:
    sizes: list[int] = []
    while length > 0:
        sizes.append(chunk(length))
        length -= sizes[-1]
    return sizes


@given(st.integers(0, 200_000))
def test_chunks_cover_a_prompt(length: int):
    sizes = chunks(length)
    assert set(sizes) <= set(CHUNKS)
    assert sizes == sorted(sizes, reverse=True)
    padding = sum(sizes) - length
    assert padding >= 0
    if sizes:
        assert padding < sizes[-1]  # none is all padding
        assert padding <= max(sizes[-1] // 2, CHUNKS[0] - 1)
    else:
        assert length == 0


@given(st.integers(1, 200_000))
def test_few_calls_are_made(length: int):
    """At most what one size too many of each kind would make: 512s, then up to three 128s, then up to two 32s."""
    assert len(chunks(length)) <= length // CHUNKS[-1] + sum(b // a for a, b in itertools.pairwise(CHUNKS))


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_what_cannot_be_parted_fits(one: int, other: int):
    least, rest = sorted((one, other))
    size = chunk(rest, least)
    assert size >= least
    assert size in CHUNKS or (size % CHUNKS[-1] == 0 and size - least < CHUNKS[-1])


@given(st.integers(1, 131_072), st.integers(1, 131_072), st.sampled_from([300, 1024, 8192, 32_768, 131_072]))
def test_capacity_is_enough_and_monotone(first: int, second: int, context: int):
    low, high = sorted(min(length, context) for length in (first, second))
    assert low <= capacity(low, context) <= capacity(high, context) <= context
    assert capacity(low, context) in {*CAPACITIES, context}


@pytest.mark.parametrize(("length", "context", "expected"), [(1, 8192, 1024), (1025, 8192, 4096), (5000, 8192, 8192)])
def test_capacity_never_exceeds_the_context(length: int, context: int, expected: int):
    assert capacity(length, context) == expected
