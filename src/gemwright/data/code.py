"""Source code as training data."""

from collections.abc import Iterable
from pathlib import Path

from gemwright.data.dataset import Dataset
from gemwright.errors import GemwrightError
from gemwright.text.tokenizer import Tokenizer


def open_code(
    paths: Iterable[str | Path], tokenizer: Tokenizer, *, max_length: int, infill: float, repository: bool, seed: int
) -> Dataset:
    """Read and tokenize source code.

    Raises:
        GemwrightError: Always, so far.
    """
    raise GemwrightError("Data with infill or repository are not supported yet; leave these keys out.")
