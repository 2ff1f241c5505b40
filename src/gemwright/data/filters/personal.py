"""Personal data: patterns, with checksums where the number has one.

Reserved numbers and addresses (example cards aside) are left alone: addresses of private networks, and telephone
numbers that no plan assigns.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """A kind of personal data.

    Attributes:
        name: Its name; what is found is replaced by the name in brackets.
        hint: What a text with it has; found quickly.
        expression: What it looks like.
        check: Whether a match is one, by its checksum or plan of numbers.
    """

    name: str
    hint: re.Pattern[str]
    expression: re.Pattern[str]
    check: Callable[[re.Match[str]], bool]


def find(text: str) -> list[tuple[int, int, str]]:
    """Return the start, end and name of each piece of personal data, in order; none overlaps another."""
    found: list[tuple[int, int, str]] = []
    for pattern in PATTERNS:
        if not pattern.hint.search(text):
            continue
        spans = [match.span() for match in pattern.expression.finditer(text) if pattern.check(match)]
        found += [(start, end, pattern.name) for start, end in spans]
        text = _blank(text, spans)
    return sorted(found)


def _blank(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return a text of the same length with what is at some places, in order, overwritten."""
    parts: list[str] = []
    last = 0
    for start, end in spans:
        parts += [text[last:start], "\0" * (end - start)]
        last = end
    return "".join([*parts, text[last:]])


def replace(text: str, counts: Counter[str]) -> str:
    """Return the text with a name in brackets, such as [EMAIL], for personal data, and count them by name."""
    parts: list[str] = []
    last = 0
    for start, end, name in find(text):
        counts[name] += 1
        parts += [text[last:start], f"[{name}]"]
        last = end
    return "".join([*parts, text[last:]])


def check_luhn(number: str) -> bool:
    """Return whether the last digit is the checksum of the others. Source: ISO/IEC 7812-1, annex B."""
    digits = [int(character) for character in number if character.isdigit()]
    doubled = [2 * digit - 9 if digit > 4 else 2 * digit for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and check_luhn(digits)


def _is_iban(match: re.Match[str]) -> bool:
    return check_iban(match.group())


def check_iban(number: str) -> bool:
    """Return whether the two digits after the country are the checksum (modulo 97). Source: ISO 13616-1."""
    compact = number.replace(" ", "").upper()
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _is_ssn(match: re.Match[str]) -> bool:
    """Return whether the number can have been assigned. Source: Social Security Administration, POMS RM 10201.035."""
    area, group, serial = re.split(r"[- ]", match.group())
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_public_address(match: re.Match[str]) -> bool:
    try:
        return ipaddress.ip_address(match.group()).is_global
    except ValueError:
        return False


_PHONE_WORDS = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell|cellphone|fax|call|ring|dial|whatsapp)\b", re.IGNORECASE
)
_DATE = re.compile(r"(?:19|20)\d\d[-./]\d\d?[-./]\d\d?(?!\d)")
_CONTEXT_CHARACTERS = 25


def _is_phone(match: re.Match[str]) -> bool:
    """Return whether a number exists in the plan of its country (the USA if it has no prefix), or is called one.

    Source of the plans: Google's metadata of numbers (`phonenumbers`).
    """
    number = match.group()
    if not 7 <= sum(map(str.isdigit, number)) <= 20 or _DATE.match(number):
        return False
    import phonenumbers

    text, start, end = match.string, match.start(), match.end()
    around = f"{text[max(0, start - _CONTEXT_CHARACTERS) : start]} {text[end : end + 5]}"
    try:
        known = phonenumbers.is_valid_number(phonenumbers.parse(number, "US"))
    except phonenumbers.NumberParseException:
        known = False
    return known or bool(_PHONE_WORDS.search(around))


def _accept(_: re.Match[str]) -> bool:
    return True


_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_DIGITS = r"\d[\d ().,/+-]{5}"
PATTERNS = (
    Pattern(
        "EMAIL",
        re.compile("@"),
        re.compile(
            r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b",
            re.ASCII,
        ),
        _accept,
    ),
    Pattern(
        "IBAN",
        re.compile(r"[A-Z]\d\d ?[A-Z0-9]{4}"),
        re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        _is_iban,
    ),
    Pattern("CARD", re.compile(_DIGITS), re.compile(r"(?<![\d.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\d-])"), _is_card),
    Pattern("SSN", re.compile(_DIGITS), re.compile(r"(?<![\d-])\d{3}([- ])\d{2}\1\d{4}(?![\d-])"), _is_ssn),
    Pattern(
        "IP",
        re.compile(r"\d\.\d{1,3}\."),
        re.compile(rf"(?<![\d.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\d.]*\d)"),
        _is_public_address,
    ),
    Pattern(
        "IP",
        re.compile(r":[0-9A-Fa-f]{0,4}:"),
        re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:|:){2,7}[0-9A-Fa-f]{1,4}(?![\w:])"),
        _is_public_address,
    ),
    Pattern(
        "PHONE",
        re.compile(_DIGITS),
        re.compile(
            r"(?<![\w.+-])[+(]?\d(?:[ ./-]{0,2}[()]?){1,2}(?:\d(?:[ ./-]{0,2}[()]?[ .-]?)){5,14}(?<=\d)"
            r"(?: ?(?:x|ext\.?) ?\d{1,5})?(?![\w-])"
        ),
        _is_phone,
    ),
)
"""The kinds of personal data, in the order in which they are looked for."""
