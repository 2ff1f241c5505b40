"""The language of a text, by a naive Bayes model over bytes that the package `py3langid` contains."""

from functools import lru_cache
from typing import Any

MAX_CHARACTERS = 2_000
"""Characters at the start of a text by which its language is found."""


@lru_cache(1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def list_languages() -> list[str]:
    """Return the codes of all languages (ISO 639)."""
    return sorted(_identifier().labels)


def find_language(text: str) -> tuple[str, float]:
    """Return the code of the language of a text (ISO 639) and its probability."""
    language, probability = _identifier().classify(text[:MAX_CHARACTERS])
    return str(language), float(probability)
