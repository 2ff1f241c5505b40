"""IFEval without downloads: the checks of its 25 kinds of instructions, and lm-eval's four scores.

Definitions: Zhou et al. (2023), arXiv:2311.07911. The checks decide as lm-eval's do, with three exceptions: sentences
are split by the same algorithm (Punkt) with the abbreviations below instead of a trained model; the detection of
languages has a fixed seed; and a letter to count may be any character, for which lm-eval draws a letter at random.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from gemwright.errors import DataError
from gemwright.eval.definitions import make_task

Arguments = Mapping[str, Any]
"""What an instruction says, such as its number of words; without those that are None."""

_ABBREVIATIONS = (
    "a.m adm aug ave bros co col corp d.c dec dr feb fri ft gen inc jan jr l.a lt ltd maj messrs mr mrs ms n.y nov oct "
    "p.m ph.d prof rep sen sep sept sr st u.k u.n u.s u.s.a vs wed"
)
ABBREVIATIONS: Final = frozenset(_ABBREVIATIONS.split())
"""English abbreviations whose period ends no sentence, in lower case without the last period."""

_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCES = ("```json", "```Json", "```JSON", "```")
_POSTSCRIPTS = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}


def split_sentences(text: str) -> list[str]:
    """Return the sentences of an English text."""
    return list(_load_punkt().tokenize(text))


@cache
def _load_punkt() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language, or None if it has no letters to tell it from."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return str(detect(text))
    except LangDetectException:
        return None


def _compare(count: int, arguments: Arguments, number: str, relation: str = "relation") -> bool:
    limit = int(arguments[number])
    return count < limit if arguments[relation] == "less than" else count >= limit


def _has_keywords(text: str, arguments: Arguments) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in arguments["keywords"])


def _has_keyword_often(text: str, arguments: Arguments) -> bool:
    found = re.findall(arguments["keyword"].strip(), text, re.IGNORECASE)
    return _compare(len(found), arguments, "frequency")


def _lacks_words(text: str, arguments: Arguments) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in arguments["forbidden_words"])


def _has_letter_often(text: str, arguments: Arguments) -> bool:
    count = text.lower().count(arguments["letter"].strip().lower())
    return _compare(count, arguments, "let_frequency", "let_relation")


def _is_in_language(text: str, arguments: Arguments) -> bool:
    return detect_language(text) in (arguments["language"], None)


def _has_sentences(text: str, arguments: Arguments) -> bool:
    return _compare(len(split_sentences(text)), arguments, "num_sentences")


def _has_paragraphs(text: str, arguments: Arguments) -> bool:
    blank = [not part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    number = len(blank) - blank[0] - (blank[-1] if len(blank) > 1 else 0)
    return not any(blank[1:-1]) and number == arguments["num_paragraphs"]


def _has_words(text: str, arguments: Arguments) -> bool:
    from nltk.tokenize import RegexpTokenizer  # unlike re, it keeps the vowel signs of Indic scripts in their words

    return _compare(len(RegexpTokenizer(r"\w+").tokenize(text)), arguments, "num_words")


def _begins_paragraph(text: str, arguments: Arguments) -> bool:
    paragraphs = text.split("\n\n")
    number, place = sum(bool(part.strip()) for part in paragraphs), int(arguments["nth_paragraph"])
    if place > number or not (paragraph := paragraphs[place - 1].strip()):
        return False
    word = paragraph.split()[0].lstrip("'").lstrip('"')
    first = re.split("[.,?!'\"]", word)[0].lower()
    return number == arguments["num_paragraphs"] and first == arguments["first_word"].lower()


def _has_placeholders(text: str, arguments: Arguments) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= arguments["num_placeholders"]


def _has_postscript(text: str, arguments: Arguments) -> bool:
    marker = arguments["postscript_marker"].strip()
    pattern = _POSTSCRIPTS.get(marker, rf"\s*{marker.lower()}.*$")
    return bool(re.search(pattern, text.lower(), re.MULTILINE))


def _has_bullets(text: str, arguments: Arguments) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == arguments["num_bullets"]


def _has_answer(text: str, arguments: Arguments) -> bool:
    del arguments
    return any(answer in text for answer in _ANSWERS)


def _has_highlights(text: str, arguments: Arguments) -> bool:
    single = [part.strip("*") for part in re.findall(r"\*[^\n\*]*\*", text)]
    double = [part[2:-2] for part in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(part.strip()) for part in single + double) >= arguments["num_highlights"]


def _has_sections(text: str, arguments: Arguments) -> bool:
    mark = arguments["section_spliter"].strip()
    return len(re.findall(rf"\s?{mark}\s?\d+\s?", text)) >= arguments["num_sections"]


def _is_json(text: str, arguments: Arguments) -> bool:
    del arguments
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(text: str, arguments: Arguments) -> bool:
    del arguments
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _has_two_responses(text: str, arguments: Arguments) -> bool:
    del arguments
    parts = text.split("******")
    if not all(part.strip() for part in parts[1:-1]):
        return False
    found = [part.strip() for part in parts if part.strip()]
    return len(found) == 2 and found[0] != found[1]


def _repeats_prompt(text: str, arguments: Arguments) -> bool:
    return text.strip().lower().startswith(arguments["prompt_to_repeat"].strip().lower())


def _ends_with(text: str, arguments: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(arguments["end_phrase"].strip().lower())


def _has_capital_words(text: str, arguments: Arguments) -> bool:
    from nltk.tokenize import NLTKWordTokenizer

    words = [word for sentence in split_sentences(text) for word in NLTKWordTokenizer().tokenize(sentence)]
    return _compare(sum(map(str.isupper, words)), arguments, "capital_frequency", "capital_relation")


def _is_english(text: str) -> bool:
    return detect_language(text) in ("en", None)


INSTRUCTIONS: Final[Mapping[str, Callable[[str, Arguments], bool]]] = {
    "keywords:existence": _has_keywords,
    "keywords:frequency": _has_keyword_often,
    "keywords:forbidden_words": _lacks_words,
    "keywords:letter_frequency": _has_letter_often,
    "language:response_language": _is_in_language,
    "length_constraints:number_sentences": _has_sentences,
    "length_constraints:number_paragraphs": _has_paragraphs,
    "length_constraints:number_words": _has_words,
    "length_constraints:nth_paragraph_first_word": _begins_paragraph,
    "detectable_content:number_placeholders": _has_placeholders,
    "detectable_content:postscript": _has_postscript,
    "detectable_format:number_bullet_lists": _has_bullets,
    "detectable_format:constrained_response": _has_answer,
    "detectable_format:number_highlighted_sections": _has_highlights,
    "detectable_format:multiple_sections": _has_sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _has_title,
    "combination:two_responses": _has_two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": lambda text, _: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:capital_word_frequency": _has_capital_words,
    "change_case:english_capital": lambda text, _: text.isupper() and _is_english(text),
    "change_case:english_lowercase": lambda text, _: text.islower() and _is_english(text),
    "punctuation:no_comma": lambda text, _: "," not in text,
}
"""Whether a text follows an instruction, by the kind of instruction."""


def check(kind: str, text: str, arguments: Arguments) -> bool:
    """Return whether a text follows an instruction; an empty text follows none.

    Raises:
        DataError: The kind is unknown, or an argument is missing or invalid.
    """
    if kind not in INSTRUCTIONS:
        raise DataError(f"IFEval has no instruction {kind!r}: the data must come from its 25 kinds.")
    try:
        return bool(text.strip()) and INSTRUCTIONS[kind](text, arguments)
    except (KeyError, TypeError, AttributeError, re.error) as error:
        raise DataError(f"The arguments of IFEval's instruction {kind} are incomplete or invalid ({error}).") from error


def relax(text: str) -> list[str]:
    """Return the texts of which one must follow an instruction loosely: without asterisks, first or last line."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(part.replace("*", "") for part in cut)]


def score(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Return the four scores of a reply, for lm-eval's `process_results`.

    Raises:
        DataError: See `check`.
    """
    kinds: list[str] = document["instruction_id_list"]
    given = [{name: value for name, value in one.items() if value} for one in document["kwargs"]]
    strict = [check(kind, results[0], one) for kind, one in zip(kinds, given, strict=True)]
    loose = [any(check(kind, text, one) for text in relax(results[0])) for kind, one in zip(kinds, given, strict=True)]
    return {
        "prompt_level_strict_acc": all(strict),
        "inst_level_strict_acc": strict,
        "prompt_level_loose_acc": all(loose),
        "inst_level_loose_acc": loose,
    }


def average(items: Iterable[Sequence[bool]]) -> float:
    """Return the share of all instructions that were followed, for lm-eval's `aggregation`."""
    followed = [one for item in items for one in item]
    return sum(followed) / len(followed)


TASKS: Final = (make_task("ifeval", r"if.?eval.*\.jsonl"),)
"""The task and the file that serves it."""
