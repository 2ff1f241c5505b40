"""What every tensor file offers, whatever its format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in its file.

    Attributes:
        shape: Row-major, outermost axis first.
        encoding: `"F32"`, `"F16"`, `"BF16"`, or a block quantisation such as `"Q4_K"`.
        offset: First byte, counted from the start of the file.
        nbytes: Size in the file, in bytes.
        panels: Whether its bytes lie as `kernels.panels` has them, not row by row.
    """

    shape: tuple[int, ...]
    encoding: str
    offset: int
    nbytes: int
    panels: bool = False


class TensorFile(Protocol):
    """A memory-mapped file of named tensors; opening one reads its header only."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the file's order."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """Returns a whole tensor.

        Plain encodings are read-only views of the mapped file in its own dtype; block quantisations are
        decoded to a new float32 array.
        """
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Returns `read(name)[start:stop]` and decodes no other row."""
        ...

    def raw(self, name: str) -> NDArray[Any]:
        """Returns a tensor's bytes, `(nbytes,)` uint8, as a read-only view of the mapped file."""
        ...

    def release(self, name: str) -> None:
        """Gives back the memory that reading a tensor has mapped in; views of it stay good and map it in again."""
        ...
