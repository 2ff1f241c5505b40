"""Memory of the stages that see all records, at the size of ten gigabytes of text."""

import resource
from pathlib import Path

import numpy as np
import pytest

from gemwright.data.filters import duplicates
from gemwright.data.filters.minhash import SIGNATURE
from gemwright.data.filters.screen import BLOCK
from tests.helpers import run_in_new_process

RECORDS, PARTS = 5_000_000, 160
"""Records of 2 kB, in parts of 64 MB."""
LIMIT = 2_000_000_000
"""Bytes."""


def write_signatures(folder: Path) -> list[Path]:
    """Write random signatures, of which a third repeat an earlier one: some in all bands, some in one."""
    draw = np.random.default_rng(0)
    paths: list[Path] = []
    for part in range(PARTS):
        blocks = draw.integers(1, 1 << 63, (-(-RECORDS // PARTS // BLOCK), SIGNATURE, BLOCK), np.uint64)
        if part:
            earlier = np.fromfile(paths[int(draw.integers(part))], "<u8").reshape(blocks.shape)
            blocks[..., : BLOCK // 6] = earlier[..., : BLOCK // 6]
            blocks[:, 3, -BLOCK // 6 :] = earlier[:, 3, -BLOCK // 6 :]
        paths.append(folder / f"{part:05d}.signatures")
        blocks.tofile(paths[-1])
    return paths


def compare_all(folder: Path) -> tuple[int, int]:
    """Compare and join in 4 shares a band; return the number of dropped records and the peak of the memory in bytes."""
    signatures = sorted(folder.glob("*.signatures"))
    pairs: list[tuple[bool, Path]] = []
    for band in range(SIGNATURE):
        for share in range(4):
            pairs.append((band == 0, folder / f"{band}-{share}.npy"))
            duplicates.compare(signatures, band, share, 4, pairs[-1][1])
    found = duplicates.join(pairs, folder / "dropped.npy")
    return found["dropped"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_ten_gigabytes_take_less_than_two(tmp_path: Path):
    write_signatures(tmp_path)
    dropped, peak = run_in_new_process(compare_all, tmp_path)
    records = PARTS * -(-RECORDS // PARTS // BLOCK) * BLOCK
    assert 0.3 * records < dropped < 0.34 * records
    assert peak < LIMIT, f"{peak:,} bytes"
