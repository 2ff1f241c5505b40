"""Read the code blocks of Markdown pages."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Block:
    """A fenced code block: its language, its text, and the level-2 heading that it follows."""

    language: str
    text: str
    section: str


def read_blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page in order."""
    pattern = re.compile(
        r"^## (?P<section>[^\n]+)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
    )
    blocks: list[Block] = []
    section = ""
    for match in pattern.finditer(page.read_text()):
        section = match["section"] or section
        if match["text"] is not None:
            blocks.append(Block(match["language"], match["text"], section))
    return blocks
