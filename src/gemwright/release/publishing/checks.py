"""What must hold before files are published. Each check yields a sentence for each problem."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gemwright.checkpoint.files.description import read_description
from gemwright.data.filters import personal
from gemwright.errors import GemwrightError
from gemwright.families import FAMILIES
from gemwright.release.publishing import provenance
from gemwright.release.publishing.card import CARD
from gemwright.release.publishing.croissant import FILE as CROISSANT
from gemwright.release.publishing.notices import (
    APACHE,
    GEMMA,
    LICENSE,
    NOTICE,
    REQUIRED_SENTENCE,
    TERMS_COPY,
    find_license,
    is_text_of,
)
from gemwright.variants import VARIANTS

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

MAX_TEXT_BYTES = 4 << 20
"""Maximum size of a file that is searched for secrets and personal data, in bytes."""
SECRETS = {
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "a key of OpenAI or Anthropic": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a key of Google": r"\bAIza[A-Za-z0-9_-]{30,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "a password in an address": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,80}:[^\s/@]{1,80}@",
    "a password or key": (
        r"(?i)\b(?:password|passwd|api[_-]?key|secret[_-]?key|access[_-]?token)\b[\"']?\s*[:=]\s*[\"']?[^\s\"'<>{}]{8,}"
    ),
}
"""What secrets look like."""
_HOME = re.compile(r"(?:/home/|/Users/|/root/|[A-Za-z]:\\Users\\)[^\s\"'`)|]{1,}")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_TEXTS = (".md", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".jinja", ".html", ".py", ".sh", "", ".csv")


def check_release(folder: Path) -> list[str]:
    """Return a sentence for each problem of a release; none if it can be published.

    Raises:
        GemwrightError: The folder does not exist, or has a link that leads out of it.
    """
    files = provenance.list_files(folder)
    is_data = (folder / CROISSANT).is_file()
    problems = [*(_check_data_card(folder) if is_data else _check_card(folder)), *_check_files(folder, files)]
    for file in files:
        problems += _check_text(folder, file)
        problems += _check_weights(folder, file)
    return problems if is_data else [*problems, *_check_provenance(folder, files)]


def _check_data_card(folder: Path) -> Iterator[str]:
    """Check the metadata of the card of data."""
    card = _read_card(folder / CARD)
    if isinstance(card, str):
        yield card
    elif not card.license:
        yield f"{CARD} has no license in its metadata; write the release with `gemwright card`"


def _check_card(folder: Path) -> Iterator[str]:
    """Check the metadata of the card, and the files that its license asks for."""
    if not (folder / CARD).is_file():
        yield f"{CARD} is missing; write the release with `gemwright card`"
        return
    card = _read_card(folder / CARD)
    if isinstance(card, str):
        yield card
        return
    given: Any = card.base_model
    base = given[0] if isinstance(given, list) and given else given
    if not card.license or not base:
        yield f"{CARD} has no license or no base_model in its metadata; write the release with `gemwright card`"
        return
    try:
        weights_license = find_license(str(base), _find_family(str(base)))
    except GemwrightError:
        weights_license = APACHE if card.license == APACHE.hub else GEMMA
    if card.license != weights_license.hub:
        yield f"{CARD} has the license {card.license!s:.40}, and {base!s:.200} is under the {weights_license.name}"
    yield from _check_license(folder, weights_license is GEMMA)


def _read_card(path: Path) -> "ModelCardData | str":
    """Return the metadata of a card, or what is wrong with them."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        return cast("ModelCardData", ModelCard(path.read_text("utf-8")).data)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError, yaml.YAMLError) as error:
        return f"{CARD} has no valid metadata ({' '.join(str(error).split()) or type(error).__name__:.100})"


def read_license(folder: Path) -> str:
    """Return the license in the metadata of the card of a release that passed its checks."""
    card = _read_card(folder / CARD)
    return "" if isinstance(card, str) else str(card.license)


def _find_family(base: str) -> Any:
    short = base.removeprefix("google/").lower()
    names = [variant.family for variant in VARIANTS.values() if short in variant.checkpoints]
    return next((family for family in FAMILIES if family.name in names), None)


def _check_license(folder: Path, is_gemma: bool) -> Iterator[str]:
    notice = folder / NOTICE
    if not notice.is_file():
        yield f"the license file {NOTICE} is missing"
    elif is_gemma and REQUIRED_SENTENCE not in " ".join(notice.read_text("utf-8", "replace").split()):
        yield f"{NOTICE} lacks the sentence {REQUIRED_SENTENCE!r}"
    if not (folder / LICENSE).is_file():
        yield f"the license file {LICENSE} is missing"
    elif not is_gemma and not is_text_of(APACHE, folder / LICENSE):
        yield f"{LICENSE} is no copy of the {APACHE.name} license"
    if is_gemma and not is_text_of(GEMMA, folder / TERMS_COPY):
        yield f"the license file {TERMS_COPY}, a copy of {GEMMA.url}, is missing"


def _check_files(folder: Path, files: list[Path]) -> Iterator[str]:
    """Check that the files are those of SHA256SUMS."""
    try:
        sums = provenance.read_sums(folder)
    except GemwrightError:
        yield f"{provenance.SUMS} is missing or damaged; write the release again with `gemwright card`"
        return
    there = {file.relative_to(folder).as_posix(): file for file in files}
    for name in sorted(sums.keys() - there.keys()):
        yield f"{name} is missing, although {provenance.SUMS} lists it"
    for name in sorted(there.keys() - sums.keys() - {provenance.SUMS, provenance.SIGNATURE}):
        yield f"{name} is not listed in {provenance.SUMS}; write the release again with `gemwright card`"
    for name in sorted(sums.keys() & there.keys()):
        if provenance.hash_file(there[name]) != sums[name]:
            what = (
                ", so its evaluations are of older weights" if there[name].suffix in (".safetensors", ".gguf") else ""
            )
            yield f"{name} has changed since {provenance.SUMS} was written{what}; write the release again"


def _check_text(folder: Path, file: Path) -> Iterator[str]:
    """Check a text for secrets, and what people wrote or recorded for personal data."""
    name = file.relative_to(folder).as_posix()
    if file.suffix not in _TEXTS or file.stat().st_size > MAX_TEXT_BYTES or file.name == provenance.SUMS:
        return
    text = file.read_text("utf-8", "replace")
    for what, pattern in SECRETS.items():
        if match := re.search(pattern, text):
            yield f"{name}, line {_line(text, match.start())}, has {what}; remove it, and revoke it"
    if match := _HOME.search(text):
        yield f"{name}, line {_line(text, match.start())}, has the path of a home folder; remove it"
    if _is_written(file, folder):
        for start, _, kind in personal.find(text):
            yield f"{name}, line {_line(text, start)}, has personal data ({kind}); remove it, or give a page instead"


def _is_written(file: Path, folder: Path) -> bool:
    """Return whether a text is by people or from records, and not a tokenizer or the copy of a license."""
    place = file.relative_to(folder).parts
    if file.name in (TERMS_COPY, LICENSE):
        return False
    return file.suffix in (".md", ".txt", ".yaml", ".yml") or file.name == NOTICE or place == (provenance.STATEMENT,)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _check_weights(folder: Path, file: Path) -> Iterator[str]:
    """Check that weights are in a format that runs no code, and say that they were modified."""
    name = file.relative_to(folder).as_posix()
    if file.suffix in _PICKLES:
        yield f"{name} may be a pickle, which runs code when it is opened; publish safetensors"
    if file.suffix in (".safetensors", ".gguf"):
        try:
            if "odified" not in (read_description(file) or ""):
                yield f"{name} lacks a notice of modification in its metadata; write the release with `gemwright card`"
        except GemwrightError as error:
            yield str(error).removesuffix(".")


def _check_provenance(folder: Path, files: list[Path]) -> Iterator[str]:
    """Check that the provenance is of these files, and that evaluations are not older than the weights."""
    try:
        statement = provenance.read_statement(folder)
        subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
        stale = provenance.find_stale(statement)
    except (GemwrightError, KeyError, TypeError, AttributeError):
        yield f"{provenance.STATEMENT} is missing or damaged; write the release again with `gemwright card`"
        return
    yield from (f"the evaluation {name} is older than the weights; evaluate them again" for name in stale)
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file.suffix in (".safetensors", ".gguf") and subjects.get(name) != provenance.hash_file(file):
            yield f"{name} is not the file that {provenance.STATEMENT} and the evaluations are about"
