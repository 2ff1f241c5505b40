"""Time `matmul` and compare with the memory read bandwidth of this machine, measured in the same run.

Usage: python bench.py [--threads 2] [--rows 1 512] [--encodings Q8_0 Q4_0] [--isa avx2]

XLA fixes its number of threads when it starts, so `--threads` is for the whole run. Each line has the minimum and the
median of its times; other load on the machine widens the gap between them.
"""

import argparse
import os
import statistics

from machine import read_bandwidth, times

SHAPES = ((262144, 640), (2048, 640), (640, 2048))


def main() -> None:
    """Print one line per encoding, shape and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--encodings", nargs="+")
    parser.add_argument("--isa")
    parser.add_argument("--exact", action="store_true")
    arguments = parser.parse_args()
    os.environ["NPROC"] = str(arguments.threads)  # XLA reads the size of its thread pool from this variable
    if arguments.isa:
        os.environ["GEMWRIGHT_NATIVE_ISA"] = arguments.isa

    import jax
    import numpy as np

    import gemwright_native as native

    bandwidth = read_bandwidth(arguments.threads)
    print(f"{native.isa()}, {arguments.threads} threads, reads {bandwidth / 1e9:.1f} GB/s")
    print(f"{'':6} {'shape':>12} {'rows':>4} {'least':>9} {'median':>9}  {'GB/s':>5} {'of read':>7} {'GFLOP/s':>7}")
    random = np.random.default_rng(0)
    for encoding in arguments.encodings or native.ENCODINGS:
        for out, width in SHAPES:
            if encoding.endswith(("K", "XS")) and width % 256:
                continue
            # Bytes in this range are small normal numbers in every float format.
            packed = jax.device_put(random.integers(16, 48, native.packed_bytes(encoding, (out, width)), np.uint8))
            for rows in arguments.rows:
                x = jax.device_put(random.standard_normal((rows, width), np.float32))
                call = jax.jit(lambda x, w, e=encoding, o=out: native.matmul(x, w, e, o, arguments.exact))
                taken = times(lambda call=call, x=x, w=packed: call(x, w).block_until_ready())
                least, median = min(taken), statistics.median(taken)
                speed = packed.size / least
                print(
                    f"{encoding:6} {f'{out}x{width}':>12} {rows:4} {least * 1e6:7.0f}us {median * 1e6:7.0f}us  "
                    f"{speed / 1e9:5.1f} {speed / bandwidth:7.0%} {2 * rows * out * width / least / 1e9:7.0f}"
                )
            del packed


if __name__ == "__main__":
    main()
