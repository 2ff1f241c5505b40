"""The interface of tensor files of every format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorInfo:
    """The shape, encoding and place of a tensor in its file.

    Attributes:
        shape: Row-major, outermost axis first.
        encoding: `"F32"`, `"F16"`, `"BF16"`, or a block encoding such as `"Q4_K"`.
        offset: Offset of the first byte from the start of the file.
        nbytes: Size in the file, in bytes.
        panels: Whether the bytes are in the layout of `kernels.panels` instead of row by row.
    """

    shape: tuple[int, ...]
    encoding: str
    offset: int
    nbytes: int
    panels: bool = False


class TensorFile(Protocol):
    """A memory-mapped file of named tensors. Opening one reads its header only."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the order of the file."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor.

        A plain encoding gives a read-only view of the mapped file in its own dtype, a block encoding is decoded to a
        new float32 array.
        """
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return `read(name)[start:stop]` without decoding other rows."""
        ...

    def raw(self, name: str) -> NDArray[Any]:
        """Return a tensor's bytes, `(nbytes,)` uint8, as a read-only view of the mapped file."""
        ...

    def release(self, name: str) -> None:
        """Release the pages that reading a tensor mapped in. Views stay valid and map them in again."""
        ...
