"""The files and notices that a license asks for beside Gemma's weights and what derives from them.

Sources: Gemma Terms of Use, sections 3.1 and 3.2 (ai.google.dev/gemma/terms); Apache License 2.0, section 4.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from gemwright.checkpoint.demo import PACKAGE
from gemwright.errors import GemwrightError
from gemwright.families import TERMS, Family
from gemwright.release.publishing.page import read_page
from gemwright.release.publishing.subject import Subject

NOTICE, LICENSE, TERMS_COPY = "NOTICE", "LICENSE", "GEMMA_TERMS_OF_USE.txt"
POLICY = "https://ai.google.dev/gemma/prohibited_use_policy"
"""The uses that section 3.2 of the Gemma Terms of Use restricts."""
REQUIRED_SENTENCE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
"""What the notice of section 3.1 says, word for word."""
MAX_TERMS_BYTES = 1 << 20
"""Maximum size of the text of a license, in bytes."""
_APACHE_MODELS = re.compile(r"(?:google/)?gemma-?4(?![\d.])", re.IGNORECASE)
"""Models under Apache 2.0 (ai.google.dev/gemma/apache_2), whose family is not run yet."""


@dataclass(frozen=True)
class License:
    """A license of weights.

    Attributes:
        name: Its name, as in `gemwright.families`.
        hub: Its name on the hub.
        kaggle: Its name on Kaggle.
        url: Its text.
        marks: Words that a copy of its text has.
    """

    name: str
    hub: str
    kaggle: str
    url: str
    marks: tuple[str, ...]


GEMMA = License("Gemma Terms of Use", "gemma", "Gemma", TERMS, ("Gemma Terms of Use", "Model Derivatives"))
APACHE = License(
    "Apache-2.0", "apache-2.0", "Apache 2.0", "https://ai.google.dev/gemma/apache_2", ("Apache License", "Version 2.0")
)
LICENSES = {one.name: one for one in (GEMMA, APACHE)}

_RESTRICTIONS = f"""\
The files of this folder are a Model Derivative of Gemma or a copy of it, and are provided under and subject to the
Gemma Terms of Use: {TERMS}. The file {TERMS_COPY} beside this one is a copy of them.

By using, copying, changing or sharing these files you agree to the following, which whoever receives them from you must
agree to as well:

1. You do not use them, and do not let others use them, for a use that section 3.2 of the Gemma Terms of Use restricts:
   those of the Gemma Prohibited Use Policy ({POLICY}), and those against applicable law.
2. If you share them or what you derive from them, or offer them as a service, you make these restrictions an
   enforceable term of your agreement with whoever receives or uses them.
3. If you share them or what you derive from them, you pass on this file, {NOTICE} and the copy of the terms, and say
   prominently in files that you changed that you changed them.
"""


def find_license(base: str, family: Family | None) -> License:
    """Return the license of what derives from a published model.

    Raises:
        GemwrightError: Neither the model nor its family is known.
    """
    if _APACHE_MODELS.match(base):
        return APACHE
    if family is None:
        raise GemwrightError(f"{base:.200} is no published model that is known here; give a base whose license is.")
    return LICENSES[family.license]


def describe_change(subject: Subject, steps: int | None, method: str | None, version: str, day: str) -> str:
    """Return the sentence that says that files were modified: what changed, from what, by what and when."""
    match subject.relation:
        case "adapter" | "finetune":
            how = {"full": "all weights tuned", "qlora": "tuned with QLoRA"}.get(method or "", "tuned with LoRA")
            what = f"{how} for {steps:,} steps" if steps else how
        case "quantized":
            what = "quantized"
        case None:
            what = "converted to another format"
    return f"Modified from {subject.base}: {what}, written by gemwright {version} on {day}."


def write_notices(folder: Path, weights_license: License, change: str, terms: Path) -> None:
    """Write the notice, the license and the copy of the terms into a folder.

    Args:
        folder: The folder.
        weights_license: The license of the base model.
        change: The sentence that says that files were modified.
        terms: The copy of the terms or of the license.
    """
    if weights_license is APACHE:
        (folder / LICENSE).write_text(read_page(terms), encoding="utf-8")
        (folder / NOTICE).write_text(f"{change}\n", encoding="utf-8")
        return
    (folder / TERMS_COPY).write_text(read_page(terms), encoding="utf-8")
    (folder / LICENSE).write_text(_RESTRICTIONS, encoding="utf-8")
    (folder / NOTICE).write_text(f"{REQUIRED_SENTENCE}\n\n{change}\n", encoding="utf-8")


def find_terms(weights_license: License, given: Path | None, beside: Iterable[Path]) -> Path:
    """Return a copy of the terms of a license: a given file, one beside the base model, or one that is installed.

    Raises:
        GemwrightError: There is none, or the given file is another text.
    """
    if given is not None:
        if not is_text_of(weights_license, given):
            raise GemwrightError(
                f"{given} is no copy of the {weights_license.name}; save the page {weights_license.url} and give it."
            )
        return given
    folders = dict.fromkeys(file.parent for file in beside)
    candidates = [file for folder in folders for file in sorted(folder.iterdir()) if _may_be_terms(file)]
    found = next(
        (file for file in [*candidates, *_installed(weights_license)] if is_text_of(weights_license, file)), None
    )
    if found is None:
        name, url = weights_license.name, weights_license.url
        raise GemwrightError(f"No copy of the {name} was found; save the page {url} and add --terms FILE.")
    return found


def _may_be_terms(file: Path) -> bool:
    return file.is_file() and re.search(r"terms|licen[cs]e", file.name, re.IGNORECASE) is not None


def _installed(weights_license: License) -> list[Path]:
    """Return the copies that come with the demo weights and with gemwright itself."""
    if weights_license is GEMMA:
        spec = find_spec(PACKAGE)
        places = [] if spec is None else [Path(place) / "data" for place in spec.submodule_search_locations or ()]
        return [file for place in places if place.is_dir() for file in sorted(place.iterdir()) if _may_be_terms(file)]
    try:
        files = [Path(str(file.locate())) for file in metadata.files("gemwright") or () if file.name == LICENSE]
    except metadata.PackageNotFoundError:
        files = []
    return [*files, Path(__file__).parents[4] / LICENSE]


def is_text_of(weights_license: License, file: Path) -> bool:
    """Return whether a file is a copy of a license, by words that it has."""
    if not file.is_file() or not 2_000 <= file.stat().st_size <= MAX_TERMS_BYTES:
        return False
    text = " ".join(read_page(file).split())
    return all(mark in text for mark in weights_license.marks)
