"""Helpers that many tests share."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")


def run_in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a new process, whose memory is freed at once."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def assert_close(found: Any, expected: np.ndarray, tolerance: float, scale: Any = None) -> None:
    """Assert that every value of `found` is within `tolerance * scale` of the expected one.

    `scale` broadcasts to `expected`; by default it is the largest absolute value in `expected`.
    """
    found = np.asarray(found)
    assert found.shape == expected.shape
    excess = np.abs(found - expected) - tolerance * (np.abs(expected).max() if scale is None else scale)
    assert np.all(excess <= 0), f"{np.sum(~(excess <= 0))} values exceed their tolerance, by up to {excess.max():.3g}"


def random_ids(vocabulary: int, shape: int | tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return random token ids below `vocabulary`."""
    return np.random.default_rng(seed).integers(0, vocabulary, shape)


def english_text() -> str:
    """Return 120 distinct sentences of plain English: about 2,700 tokens of Gemma."""
    who = ["The miller", "A young clerk", "My neighbor", "The old captain", "Her sister", "The baker's boy", "Nobody"]
    did = ["carried", "counted", "forgot", "painted", "sold", "found again", "wrote about", "dreamed of"]
    what = ["the brass lamp", "seven letters", "a map of the coast", "the broken clock", "two white horses"]
    when = [
        "before sunrise",
        "in the autumn of 1871",
        "while it rained",
        "without a word",
        "on the way to Lisbon",
        "twice",
    ]
    sentences = (
        f"{who[i % 7]} {did[i % 8]} {what[i % 5]} {when[(i // 3) % 6]}, and the river rose by {i} feet."
        for i in range(120)
    )
    return " ".join(sentences)
