"""Personal data in made-up sentences: numbers of the standards' own examples, of documentation and of test cards."""

import random
from collections import Counter

import pytest

from gemwright.data.filters import personal

pytest.importorskip("phonenumbers")
FOUND = {
    "Write to jane.doe+news@mail.example.com today.": ["EMAIL"],
    "Mail a_b@example.co.uk, or c@d.example.org.": ["EMAIL", "EMAIL"],
    "Pay with 4111 1111 1111 1111 or 378282246310005.": ["CARD", "CARD"],
    "Transfer to GB82 WEST 1234 5698 7654 32 or DE89370400440532013000.": ["IBAN", "IBAN"],
    "The number 212-09-9999 was on the form.": ["SSN"],
    "The server 8.8.4.4 and 2001:4860:4860::8888 answered.": ["IP", "IP"],
    "Call (201) 555-0123 or +44 121 234 5678.": ["PHONE", "PHONE"],
    "Fax: 030 1234 567": ["PHONE"],
}
KEPT = (
    "Version 4111.1111 of 2024-01-02 has 4111 1111 1111 1112 parts.",  # a wrong checksum
    "GB82 WEST 1234 5698 7654 33 has another checksum.",
    "666-12-3456, 000-12-3456, 900-12-3456, 123-00-4567 and 123-45-0000 cannot be assigned.",
    "Hosts 10.0.0.1, 192.168.1.20, 127.0.0.1, 1.2.3.4.5 and ::1 are private, or no addresses.",
    "In 1999, 1 250 000 people lived on 12.345.678 acres; see pages 100-200 and ISBN 978-3-16-148410-0.",
    "user@localhost and @name and a@b are no addresses of mail.",
    "Call started: 2024-05-17 10:30, ended 2024-05-17 10:45.",
    "std::vector<int>::size and 10:30:15 are no addresses.",
)


@pytest.mark.parametrize("text", FOUND)
def test_found(text: str):
    assert [name for _, _, name in personal.find(text)] == FOUND[text]


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str):
    assert personal.find(text) == []


def test_replaced():
    counts: Counter[str] = Counter()
    text = "Ann (ann@example.com, 4111-1111-1111-1111) and bob@example.com."
    assert personal.replace(text, counts) == "Ann ([EMAIL], [CARD]) and [EMAIL]."
    assert counts == {"EMAIL": 2, "CARD": 1}
    assert personal.replace(personal.replace(text, counts), counts) == personal.replace(text, counts)


def test_luhn_by_its_definition():
    """Of ten last digits of a number exactly one is right; every change of a digit is found (ISO/IEC 7812-1)."""
    for number in ("411111111111111", "37828224631000", "123456781234567"):
        right = [digit for digit in "0123456789" if personal.check_luhn(number + digit)]
        assert len(right) == 1
        whole = number + right[0]
        for index, old in enumerate(whole):
            for new in set("0123456789") - {old}:
                assert not personal.check_luhn(whole[:index] + new + whole[index + 1 :])


def test_iban_by_its_definition():
    """Each of the 97 remainders of a number has one pair of checksum digits from 02 to 98 (ISO 13616-1)."""
    right = [f"{n:02}" for n in range(2, 99) if personal.check_iban(f"GB{n:02}WEST12345698765432")]
    assert right == ["82"]


@pytest.mark.parametrize(
    "text", ["1" * 100_000, "a@" * 50_000, "1-" * 50_000, "(1" * 50_000, ":1" * 50_000, "AB12 " * 20_000]
)
def test_long_texts_take_linear_time(text: str):
    personal.find(text)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_numbers_with_checksums_are_those_of_presidio():
    """On 300 random numbers of each kind, a tenth of them right or so, in sentences."""
    recognizers = pytest.importorskip("presidio_analyzer.predefined_recognizers")
    draw = random.Random(0)
    cards = [f"4{draw.randrange(10**15):015}" for _ in range(300)]
    banks = [f"DE{draw.randrange(100):02}{draw.randrange(10**18):018}" for _ in range(150)]
    banks += [_with_checksum(f"{draw.randrange(10**18):018}") for _ in range(150)]
    for name, entity, recognizer, numbers in (
        ("CARD", "CREDIT_CARD", recognizers.CreditCardRecognizer(), cards),
        ("IBAN", "IBAN_CODE", recognizers.IbanRecognizer(), banks),
    ):
        found = 0
        for number in numbers:
            text = f"The number is {number} here."
            theirs = [result for result in recognizer.analyze(text, [entity], None) if result.score == 1]
            ours = [kind for _, _, kind in personal.find(text) if kind == name]
            assert bool(ours) == bool(theirs), number
            found += bool(ours)
        assert 10 < found < 290


def _with_checksum(number: str) -> str:
    """Return a German IBAN with the right checksum, by its definition: 98 less the remainder."""
    return f"DE{98 - int(f'{number}131400') % 97:02}{number}"
