"""Answer a question from a folder of text files, and name the passages.

pip install bm25s
python examples/apps/ask_documents.py docs "How much memory does the 12B need?" --model gemma-3-4b-it

The best passages for the words of the question (BM25) are put into the prompt with numbers, by which the answer cites
them. The sources below the answer are the passages that it cites; a cited number that does not exist is reported.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bm25s

import gemwright
from gemwright.api import Model
from gemwright.errors import GemwrightError

SUFFIXES = (".md", ".rst", ".txt")
MAX_BYTES, MAX_WORDS = 2**20, 150
"""Maximum size of a file in bytes, and of a passage in words."""
RULES = (
    "Answer the question from the passages alone, in one or two sentences. Cite a passage after each fact, as in [1]. "
    "If the passages do not answer it, say that they do not."
)


class Passage(NamedTuple):
    """Some paragraphs of a file, from a line counted from 1."""

    file: Path
    line: int
    text: str


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Answer a question from a folder of text files.")
    parser.add_argument("folder", type=Path, help=f"folder with {', '.join(SUFFIXES)} files, at any depth")
    parser.add_argument("question")
    parser.add_argument("--model", default="gemma-3-4b-it", help="path, name or hub id")
    parser.add_argument("--passages", type=int, default=4, metavar="K", help="number of passages in the prompt")
    parser.add_argument("--max-tokens", type=int, default=200)
    options = parser.parse_args()
    if options.passages < 1 or not options.folder.is_dir():
        parser.error(f"--passages must be at least 1, and {options.folder} a folder.")
    passages = [passage for file in find_files(options.folder) for passage in split(file)]
    found = retrieve(passages, options.question, options.passages)
    if not found:
        parser.exit(2, f"No text file in {options.folder} has a word of the question; use other words.\n")
    try:
        answer = ask(gemwright.load(options.model), options.question, found, options.max_tokens)
    except GemwrightError as error:
        parser.exit(2, f"{error}\n")
    sys.stdout.write(f"{answer}\n\n")
    for number in dict.fromkeys(map(int, re.findall(r"\[(\d{1,9})\]", answer))) or range(1, len(found) + 1):
        if 1 <= number <= len(found):
            passage = found[number - 1]
            sys.stdout.write(f"[{number}] {passage.file}, line {passage.line}\n")
        else:
            sys.stderr.write(f"The answer cites [{number}], but there are {len(found)} passages.\n")


def find_files(folder: Path) -> list[Path]:
    """Return the text files of a folder that are not too large, in order."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in files if file.stat().st_size <= MAX_BYTES)


def split(file: Path) -> Iterator[Passage]:
    """Yield the passages of a file: paragraphs, joined as long as they have at most `MAX_WORDS` words."""
    text, line, lines = "", 1, file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, new in enumerate([*lines, ""], 1):
        is_last, is_full = number > len(lines), len(text.split()) >= MAX_WORDS
        if text.strip() and (is_last or (is_full and not new.strip()) or len(text.split()) >= 2 * MAX_WORDS):
            yield Passage(file, line, text.strip())
            text = ""
        line = line if text.strip() else number
        text += new + "\n"


def retrieve(passages: list[Passage], question: str, count: int) -> list[Passage]:
    """Return the passages that match the words of a question, best first; none if no word occurs."""
    if not passages:
        return []
    index = bm25s.BM25()
    index.index(bm25s.tokenize([text for _, _, text in passages], show_progress=False), show_progress=False)
    query = bm25s.tokenize(question, show_progress=False)
    numbers, scores = index.retrieve(query, k=min(count, len(passages)), show_progress=False)
    return [passages[number] for number, score in zip(numbers[0], scores[0], strict=True) if score > 0]


def ask(model: Model, question: str, passages: list[Passage], max_tokens: int) -> str:
    """Return the answer to a question from numbered passages."""
    context = "\n\n".join(f"[{number}] {passage.text}" for number, passage in enumerate(passages, 1))
    request = f"{RULES}\n\n{context}\n\nQuestion: {question}"
    if model.tuned:
        return model.chat([{"role": "user", "content": request}], temperature=0.0, max_tokens=max_tokens).text.strip()
    return model.generate(f"{request}\nAnswer:", temperature=0.0, max_tokens=max_tokens, stop="\n").text.strip()


if __name__ == "__main__":
    main()
