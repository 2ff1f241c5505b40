"""Sizes of the measurements, the same for every engine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Sizes of one model's measurements.

    Attributes:
        model: Published variant, or small architecture.
        batches: Batch sizes of decoding.
        prompt: Tokens of each prompt.
        decoded: Tokens generated per sequence after the first.
        train_batch: Sequences per training step.
        train_length: Tokens per sequence of a training step.
    """

    model: str
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 2048
    decoded: int = 256
    train_batch: int = 2
    train_length: int = 2048


WORKS = (Work("gemma-3-270m", train_batch=8), Work("gemma-2-2b", train_batch=4), Work("gemma-2-9b"))
TINY = (Work("Gemma 2", prompt=40, decoded=8, train_batch=2, train_length=32),)
ROUNDS = 3
PEAK_BYTES, PEAK_WIDTH = 1 << 31, 8192
"""Size in bytes of the copied array, and width of the multiplied matrices, for the peaks."""
TINY_PEAK_BYTES, TINY_PEAK_WIDTH = 1 << 24, 256


def work(model: str) -> Work:
    """Return the sizes of a model's measurements."""
    return next(work for work in (*WORKS, *TINY) if work.model == model)
