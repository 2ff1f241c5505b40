"""Translate the lines of a file with a glossary, and check that its terms were used.

python examples/apps/translate.py manual.txt --glossary terms.csv --to German --model gemma-3-4b-it > manual.de.txt

The glossary is a CSV file of lines like `kernel,Kern|Kernel`: a term and its accepted translations. Several
translations of each line are drawn, and the most probable one with all terms of the line is taken. If none has them,
the next attempt names those that are missing. A line that still lacks a term is reported, and the exit code is 1.
"""

import argparse
import csv
import re
import sys
from pathlib import Path
from typing import NamedTuple

import gemwright
from gemwright.api import Model
from gemwright.errors import GemwrightError
from gemwright.generate.output import Completion
from gemwright.options import Options

CANDIDATES = 4
"""Number of translations of a line that are drawn as one batch."""
SPACELESS = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
"""Letters of scripts without spaces between words: Thai, Lao, Japanese and Chinese."""


class Term(NamedTuple):
    """An entry of a glossary: the term in the source language, and its accepted translations."""

    source: str
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source} = {' or '.join(self.targets)}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Translate the lines of a file with a glossary.")
    parser.add_argument("file", type=Path, help="text file, one sentence or paragraph a line")
    parser.add_argument("--glossary", type=Path, required=True, metavar="CSV", help="lines of source,target")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="such as German")
    parser.add_argument("--source", default="English", metavar="LANGUAGE", help="language of the file")
    parser.add_argument("--model", default="gemma-3-4b-it", help="path, name or hub id")
    parser.add_argument("--attempts", type=int, default=3, metavar="N", help="attempts for a line with missing terms")
    options = parser.parse_args()
    try:
        glossary = read_glossary(options.glossary)
        lines = options.file.read_text(encoding="utf-8").splitlines()
        model = gemwright.load(options.model)
    except (GemwrightError, OSError, UnicodeDecodeError) as error:
        parser.exit(2, f"{error}\n")
    failed, languages = False, (options.source, options.to)
    for number, line in enumerate(lines, 1):
        terms = [term for term in glossary if contains(line, term.source)]
        text, missing = translate(model, line, languages, terms, options.attempts) if line.strip() else ("", [])
        sys.stdout.write(text + "\n")
        failed |= bool(missing)
        sys.stderr.writelines(f"{options.file}, line {number}: the translation lacks {term}\n" for term in missing)
    parser.exit(int(failed))


def read_glossary(path: Path) -> list[Term]:
    """Read a glossary; a line without two columns is a GemwrightError."""
    terms: list[Term] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            source, *rest = [cell.strip() for cell in row] or [""]
            targets = tuple(filter(None, map(str.strip, rest[0].split("|")))) if len(rest) == 1 else ()
            if row and not (source and targets):
                raise GemwrightError(f"{path}, line {number}: write a term and its translation, as in kernel,Kern.")
            terms += [Term(source, targets)] if row else []
    return terms


def contains(text: str, term: str) -> bool:
    """Return whether a text has a term as whole words, in either case; a short ending may follow, as in a plural."""
    pattern = re.escape(term) if SPACELESS.search(term) else rf"(?<!\w){re.escape(term)}\w{{0,3}}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def translate(
    model: Model, line: str, languages: tuple[str, str], terms: list[Term], attempts: int
) -> tuple[str, list[Term]]:
    """Return the best translation of a line, and the terms that it lacks."""
    best, missing = "", terms
    for attempt in range(max(attempts, 1)):
        for candidate in ask(model, line, languages, terms, missing if attempt else [], attempt):
            lacking = [term for term in terms if not any(contains(candidate.text, form) for form in term.targets)]
            if len(lacking) <= len(missing):
                best, missing = " ".join(candidate.text.split()), lacking
        if not missing:
            break
    return best, missing


def ask(
    model: Model, line: str, languages: tuple[str, str], terms: list[Term], missing: list[Term], attempt: int
) -> list[Completion]:
    """Return several translations of a line, the least probable first."""
    source, target = languages
    request = f"Translate from {source} to {target}. Answer with the translation only."
    request += f" Use these terms: {'; '.join(map(str, terms))}." if terms else ""
    request += f" The last translation lacked {' and '.join(map(str, missing))}." if missing else ""
    options: Options = {"logprobs": True, "seed": attempt * CANDIDATES, "max_tokens": 4 * len(line.split()) + 32}
    if model.tuned:
        drawn = model.chat([[{"role": "user", "content": f"{request}\n\n{line}"}]] * CANDIDATES, **options)
    else:
        drawn = model.generate([f"{request}\n\n{source}: {line}\n{target}:"] * CANDIDATES, stop="\n", **options)
    return sorted(drawn, key=lambda completion: sum(completion.logprobs) / max(len(completion.logprobs), 1))


if __name__ == "__main__":
    main()
