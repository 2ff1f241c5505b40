"""Count personal data in a text, by patterns and the checksums of their numbers."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_CARD_DIGITS = (13, 19)
"""Fewest and most digits of the number of a payment card (ISO/IEC 7812)."""
_SPACES = str.maketrans("", "", " -")


def find_personal_data(text: str) -> Counter[str]:
    """Return how often each kind of personal data occurs in a text.

    Kinds are "e-mail address", "phone number", "card number" (checksum of Luhn), "IBAN" (ISO 13616, modulo 97),
    "social security number" (of the United States, ranges as issued) and "IP address" (of public networks). A number is
    counted as one kind: the first of these whose checksum it passes.
    """
    found: Counter[str] = Counter()
    for kind, pattern, is_valid in _KINDS:
        matches = [match for match in pattern.finditer(text) if is_valid(match[0])]
        found.update({kind: len(matches)} if matches else {})
        for match in matches:  # so that no later kind finds a part of it
            text = text[: match.start()] + "\0" * len(match[0]) + text[match.end() :]
    return found


def _is_card(number: str) -> bool:
    digits = [int(digit) for digit in number.translate(_SPACES)]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    low, high = _CARD_DIGITS
    return low <= len(digits) <= high and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(code: str) -> bool:
    plain = code.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(digit, 36)) for digit in plain[4:] + plain[:4])) % 97 == 1


def _is_public_address(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_phone(number: str) -> bool:
    return 10 <= sum(character.isdigit() for character in number) <= 15  # ITU E.164


def _accept(_: str) -> bool:
    return True


_EMAIL = r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
_IBAN = r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}\b"
_CARD = r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)"
_SOCIAL_SECURITY = r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"
_ADDRESS = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"
_INTERNATIONAL_PHONE = r"\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d"
_PHONE = rf"(?<![\w.-])(?:{_INTERNATIONAL_PHONE}|(?:\(\d{{3}}\) ?|\d{{3}}[.-])\d{{3}}[.-]\d{{4}})(?![\w-])"
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("e-mail address", re.compile(_EMAIL), _accept),
    ("IBAN", re.compile(_IBAN), _is_iban),
    ("card number", re.compile(_CARD), _is_card),
    ("social security number", re.compile(_SOCIAL_SECURITY), _accept),
    ("IP address", re.compile(_ADDRESS), _is_public_address),
    ("phone number", re.compile(_PHONE), _is_phone),
)
"""Name, pattern and check of each kind, in the order in which they are looked for."""
