"""What can be read of a GGUF file before JAX is imported: its tokenizer, and its matrices as the kernels take them.

The import keeps one core busy for most of the time to the first token; this gives another core something to do.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from gemwright.checkpoint.arena import Arena
from gemwright.checkpoint.files.gguf import open_gguf
from gemwright.checkpoint.tokenizer_cache import load_cached_tokenizer
from gemwright.errors import CheckpointError
from gemwright.kernels import native as kernels
from gemwright.kernels.native import Repacked
from gemwright.runtime import machine, startup
from gemwright.text.tokenizer import Tokenizer

SPARE = 2_000_000_000
"""Bytes that must stay free beside a file and two copies of it, or its weights wait for a forecast of the memory."""
RELEASED = 1 << 24
"""Bytes of a tensor whose pages are given back at once; that of others waits, as it disturbs all threads."""


class GgufPrefetch:
    """Reads a GGUF file beside the program, from the beginning of a `with` block to its end at most.

    Attributes:
        file: The open file.
        tokenizer: What its vocabulary makes.
    """

    def __init__(self, path: Path, *, native: bool, kept: Path | None = None):
        self._path = path
        self._late, self._left = threading.Event(), threading.Event()
        self._switching = startup.fast_switching()
        self._switching.__enter__()
        self._pool = ThreadPoolExecutor(1)
        self.file = self._pool.submit(open_gguf, path)
        self._repacked = self._pool.submit(self._repack, native)
        self.tokenizer = self._pool.submit(self._tokenizer, kept)

    def __enter__(self) -> "GgufPrefetch":
        return self

    def __exit__(self, *exception: object) -> None:
        self._late.set()
        self._left.set()
        self._pool.shutdown(cancel_futures=True)
        self._switching.__exit__(None, None, None)

    def repacked(self) -> Mapping[str, Repacked]:
        """The matrices that were repacked so far, by name of the tensor; no more will be."""
        self._late.set()
        return self._repacked.result()

    def _repack(self, native: bool) -> dict[str, Repacked]:
        file = self.file.result()
        repacked: dict[str, Repacked] = {}
        arena = Arena()
        if not (native and machine.expects_cpu() and kernels.installed() and _plenty(self._path.stat().st_size)):
            return repacked
        head = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
        for name, info in file.tensors.items():
            if self._late.is_set():
                break
            if len(info.shape) == 2 and info.encoding in kernels.library().ENCODINGS:
                raw = file.raw(name)
                repacked[name] = kernels.repack(
                    info.encoding,
                    raw,
                    info.shape,
                    allocate=arena.allocate,
                    on_rows_read=self._check,
                    head=name == head,
                    spare_cores=1,
                )
                if info.nbytes > RELEASED:
                    file.release(name)
        file.release(head)
        return repacked

    def _check(self) -> None:
        if self._left.is_set():
            raise CancelledError

    def _tokenizer(self, kept: Path | None) -> Tokenizer:
        try:
            return load_cached_tokenizer(self.file.result().metadata, kept)
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from error


def _plenty(size: int) -> bool:
    free = machine.free_memory()
    return free is not None and free > 3 * size + SPARE
