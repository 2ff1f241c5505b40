"""Read a GGUF file while JAX is imported: make its tokenizer and repack its matrices for the kernels.

The import keeps one core busy for most of the time to the first token; the prefetch uses another. This module and all
that it imports must not import JAX.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from gemwright.checkpoint.arena import Arena
from gemwright.checkpoint.gguf_model import open_gguf_model
from gemwright.checkpoint.tokenizer_cache import load_cached_tokenizer
from gemwright.errors import CheckpointError
from gemwright.kernels import native as kernels
from gemwright.kernels.native import Repacked
from gemwright.runtime import machine, startup
from gemwright.text.tokenizer import Tokenizer

SPARE_BYTES = 2_000_000_000
"""Free bytes required beyond three times the file size; with less, weights wait for the forecast of the memory."""
RELEASE_BYTES = 1 << 24
"""Minimum size in bytes of a tensor whose pages are released at once. Releasing pages interrupts all threads."""


class GgufPrefetch:
    """A background thread that reads a GGUF file, until the end of a `with` block at most.

    Args:
        path: The file.
        native: Whether to repack matrices for the native kernels.
        tokenizer_cache: Folder of cached tokenizers; None uses no cache.

    Attributes:
        file: Future of the open file.
        tokenizer: Future of its tokenizer.
    """

    def __init__(self, path: Path, *, native: bool, tokenizer_cache: Path | None = None):
        self._path = path
        self._stop, self._cancel = threading.Event(), threading.Event()
        self._switching = startup.fast_switching()
        self._switching.__enter__()
        self._pool = ThreadPoolExecutor(1)
        self.file = self._pool.submit(open_gguf_model, path)
        self._repacked = self._pool.submit(self._repack, native)
        self.tokenizer = self._pool.submit(self._load_tokenizer, tokenizer_cache)

    def __enter__(self) -> "GgufPrefetch":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._cancel.set()
        self._pool.shutdown(cancel_futures=True)
        self._switching.__exit__(None, None, None)

    def repacked(self) -> Mapping[str, Repacked]:
        """Stop repacking after the current matrix and return the repacked matrices by name of the tensor."""
        self._stop.set()
        return self._repacked.result()

    def _repack(self, native: bool) -> dict[str, Repacked]:
        file = self.file.result()
        repacked: dict[str, Repacked] = {}
        arena = Arena()
        size = sum(info.nbytes for info in file.tensors.values())
        if not (native and machine.expects_cpu() and kernels.installed() and _has_memory_for(size)):
            return repacked
        head = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
        for name, info in file.tensors.items():
            if self._stop.is_set():
                break
            if len(info.shape) == 2 and info.encoding in kernels.library().ENCODINGS:
                raw = file.raw(name)
                repacked[name] = kernels.repack(
                    info.encoding,
                    raw,
                    info.shape,
                    allocate=arena.allocate,
                    on_rows_read=self._raise_if_canceled,
                    head=name == head,
                    spare_cores=1,
                )
                if info.nbytes > RELEASE_BYTES:
                    file.release(name)
        file.release(head)
        return repacked

    def _raise_if_canceled(self) -> None:
        if self._cancel.is_set():
            raise CancelledError

    def _load_tokenizer(self, cache: Path | None) -> Tokenizer:
        try:
            return load_cached_tokenizer(self.file.result().metadata, cache)
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from error


def _has_memory_for(file_bytes: int) -> bool:
    free = machine.free_memory()
    return free is not None and free > 3 * file_bytes + SPARE_BYTES
