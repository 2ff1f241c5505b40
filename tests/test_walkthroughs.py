"""Run the walkthroughs of docs/extending.md on a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, read_blocks

BLOCKS = read_blocks(ROOT / "docs" / "extending.md")
SECTIONS = ("Add a variant", "Add a mechanism", "Add a checkpoint format")


def apply_diff(text: str, root: Path) -> None:
    """Replace the context and removed lines of a diff with the context and added lines."""
    header, *lines = text.splitlines()
    path = root / header.removeprefix("--- ")
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    source = path.read_text()
    assert source.count(old) == 1, f"{path.name} has {source.count(old)} places for:\n{text}"
    path.write_text(source.replace(old, new))


def test_every_block_is_run():
    assert {block.section for block in BLOCKS} == set(SECTIONS)
    assert {block.language for block in BLOCKS} == {"python", "diff"}


@pytest.mark.parametrize("section", SECTIONS)
def test_walkthrough(section: str, tmp_path: Path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = [block for block in BLOCKS if block.section == section]
    for block in blocks:
        if block.language == "diff":
            apply_diff(block.text, tmp_path)
    check = f"import gemwright\nassert gemwright.__file__.startswith({str(tmp_path)!r})\n"
    script = check + "\n".join(block.text for block in blocks if block.language == "python")
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "src"),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
