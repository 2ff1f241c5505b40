"""Synthetic pages, of which some are of each kind that the steps remove."""

import json
import random
from pathlib import Path
from typing import Any

_TEXT = """the of and to that have with river stone letter market winter garden engine planet teacher music bridge
window village captain doctor forest harbor kitchen mountain number orange painter question silver thunder valley wagon
yellow author basket candle dragon eagle farmer gallery hammer island jacket kingdom ladder mirror needle ocean pencil
rabbit saddle temple uncle velvet whistle anchor bottle cotton desert"""
WORDS = _TEXT.split()


def make_page(seed: int, sentences: int = 12) -> str:
    """Return a page of random sentences that every heuristic keeps."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(9, 16))).capitalize() + "." for _ in range(sentences)]
    return "\n".join(" ".join(lines[start : start + 3]) for start in range(0, sentences, 3))


def change_words(text: str, share: float, seed: int = 0) -> str:
    """Return the text with a share of its words, at random places, replaced by new ones."""
    draw = random.Random(seed)
    return " ".join(f"new{draw.random()}" if draw.random() < share else word for word in text.split(" "))


def write_lines(path: Path, *records: Any) -> Path:
    """Write records, or texts as they are, as lines."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_corpus(path: Path, pages: int = 300) -> Path:
    """Write pages of which a third is removed: short, repeated, equal or alike ones, and one that is no JSON."""
    records: list[Any] = []
    for number in range(pages):
        page = make_page(number)
        records.append({"id": number, "text": page})
        if number % 10 == 1:
            records.append({"id": f"equal {number}", "text": page})
        elif number % 10 == 3:
            records.append({"id": f"alike {number}", "text": page.replace(" ", " other ", 1)})
        elif number % 10 == 5:
            records.append({"id": f"short {number}", "text": "Too short."})
        elif number % 10 == 7:
            records.append({"id": f"mail {number}", "text": f"{page} Write to ann.{number}@mail.example.com."})
    return write_lines(path, *records, "{no json")


def read_output(out: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a run, by name."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def read_ids(out: Path) -> list[Any]:
    """Return the ids of the records that stay, in order."""
    files = sorted((out / "data").glob("*.jsonl"))
    return [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]
