"""Many strings as a file holds them, which become Python's when somebody looks at one."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError

_LENGTH = 8  # bytes of a string's length, which stands in front of it


class LazyStrings(Sequence[str]):
    """Strings of 1 to 255 bytes of UTF-8, as in a GGUF file.

    A vocabulary has 262,144: to make them takes as long as to read all else, and often nobody asks.

    Attributes:
        stored: Their bytes, with the length in front of each.
    """

    def __init__(self, stored: NDArray[np.uint8], starts: NDArray[np.int64]):
        self.stored = stored
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._strings[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._strings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._strings == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    @cached_property
    def _strings(self) -> list[str]:
        try:
            return self._split() or self._cut()
        except UnicodeDecodeError as error:
            raise CheckpointError("A list of strings holds text that is not UTF-8; fetch the file again.") from error

    def _split(self) -> list[str] | None:
        """All at once, with a zero byte in front of each; None where one of them holds a zero byte itself."""
        content = self.stored.copy()
        content[self._starts] = 0
        kept = content != 0
        if np.count_nonzero(kept) != len(content) - _LENGTH * len(self):
            return None
        kept[self._starts] = True
        return content[kept].tobytes().decode().split("\0")[1:]

    def _cut(self) -> list[str]:
        data, ends = self.stored.tobytes(), [*self._starts[1:].tolist(), len(self.stored)]
        starts = (self._starts + _LENGTH).tolist()
        return [data[start:end].decode() for start, end in zip(starts, ends, strict=True)]
