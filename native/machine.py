"""Measure the peak rates of this machine: memory reads, float32 matrix products and 8-bit integer products.

Usage: python machine.py      prints a JSON object of bytes and operations per second, on the cores it may use
"""

import ctypes
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BUFFER = 512 << 20
"""Buffer size in bytes, larger than any cache."""
WIDTH = 2048
"""Rows and columns of the float32 matrices."""


def times(call: Callable[[], object], seconds: float = 0.6, most: int = 300) -> list[float]:
    """Repeat a call at least 5 times and return the seconds of each."""
    call()
    taken: list[float] = []
    while len(taken) < 5 or (sum(taken) < seconds and len(taken) < most):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "machine.so"
        source = Path(__file__).with_name("machine.cc")
        command = ["c++", "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def read_bandwidth(threads: int) -> float:
    """Return the peak bytes per second that `threads` read from a buffer larger than any cache."""
    import numpy as np

    read = _library().read_bytes
    data = np.ones(BUFFER, np.uint8)
    part = data.size // threads

    def run(prefetch: int) -> None:
        list(pool.map(lambda i: read(*_part(data.ctypes.data, i, part), ctypes.c_size_t(prefetch)), range(threads)))

    with ThreadPoolExecutor(threads) as pool:
        return max(part * threads / min(times(lambda p=p: run(p), 0.4)) for p in (0, 2048, 4096))


def _part(address: int, index: int, size: int) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    return ctypes.c_void_p(address + index * size), ctypes.c_size_t(size)


def float32_peak() -> float:
    """Return the peak operations per second of numpy's float32 matrix product; its BLAS uses all cores."""
    import numpy as np

    a, b = np.ones((2, WIDTH, WIDTH), np.float32)
    return 2 * WIDTH**3 / min(times(lambda: a @ b, 0.4))


def int8_peak(threads: int, rounds: int = 1 << 22) -> float:
    """Return the peak operations per second of the instruction that multiplies 8-bit integers."""
    multiply = _library().dot_products
    multiply.restype = ctypes.c_double
    done = 0.0

    def run() -> None:
        nonlocal done
        done = sum(pool.map(multiply, [ctypes.c_size_t(rounds)] * threads))

    with ThreadPoolExecutor(threads) as pool:
        least = min(times(run, 0.2))
    return done / least


def main() -> None:
    """Print the three rates."""
    threads = len(os.sched_getaffinity(0))
    found = {"read": read_bandwidth(threads), "float32": float32_peak(), "int8": int8_peak(threads)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
