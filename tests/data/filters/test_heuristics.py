"""The published rules for pages, against a plain reading of each rule and against another implementation."""

import random

import pytest

from gemwright.data.filters import heuristics
from tests.data.filters.corpus import WORDS, make_page

JUDGES = (heuristics.judge_gopher_quality, heuristics.judge_gopher_repetition, heuristics.judge_fineweb)


def make_pages(count: int) -> list[str]:
    """Return pages with runs repeated, lines broken and symbols added at random."""
    draw = random.Random(7)
    pages = [make_page(seed, draw.choice((2, 4, 8, 30))) for seed in range(count)]
    pages += ["\n\n".join(draw.choices(pages[:3], k=4)) for _ in range(count // 10)]
    return ["", "\n", " . ", *pages, *(_garble(draw.choice(pages), draw) for _ in range(3 * count))]


def _garble(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    for _ in range(draw.randint(0, 6)):
        start, length = draw.randrange(len(words)), draw.randint(1, 12)
        words[start:start] = words[start : start + length] * draw.randint(1, 6)
    ends = ("", "", "", "\n", "...", "#", " \n- ", ".\n", " {", " 17 ", " == ", "\n\n", " javascript.\n")
    return " ".join(word + (draw.choice(ends) if draw.random() < 0.1 else "") for word in words)


def test_pages_of_sentences_stay():
    for seed in range(20):
        page = make_page(seed)
        assert [judge(page) for judge in JUDGES] == [None, None, None]
        assert heuristics.keep_c4_lines(page) == page
        assert heuristics.judge_c4(page) is None


def test_rules_of_gopher_quality():
    page = make_page(1)
    words = page.split()
    rules = {
        " ".join(words[:49]): "fewer than 50 words",
        " ".join(word[:2] for word in words): "mean length of words not within 3 to 10",
        " ".join(f"{word} #" if index % 5 == 0 else word for index, word in enumerate(words)): "symbols",
        "\n".join(f"- {word}" for word in words): "bullets",
        "\n".join(" ".join([*words[i : i + 15], "..."]) for i in range(0, len(words), 15)): "ellipsis",
        " ".join(f"{word} 1234" for word in words): "80% of words have a letter",
        " ".join(word for word in words if word.lower() not in WORDS[:7]): "stop words",
    }
    for text, reason in rules.items():
        assert reason in (heuristics.judge_gopher_quality(text) or ""), reason


def test_rules_of_c4():
    page = make_page(2)
    assert heuristics.judge_c4(page + "\nLorem ipsum dolor sit amet.") == "lorem ipsum"
    assert heuristics.judge_c4(page + "\nif (a) { return b.") == "curly bracket"
    assert heuristics.judge_c4("One. Two. Three. Four.") == "fewer than 5 sentences"
    lines = (
        "Menu",
        "Enable javascript to see this page.",
        "We use cookies on this site.",
        "To be continued ...",
        "x y.",
    )
    assert heuristics.keep_c4_lines("\n".join([*lines, page])) == page


@pytest.mark.filterwarnings("ignore")
def test_decisions_equal_those_of_datatrove():
    """Decisions, reasons apart, are those of its filters with words split at white space, on 400 random pages."""
    pytest.importorskip("datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    with pytest.MonkeyPatch.context() as patch:
        for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
            patch.setattr(module, "split_into_words", lambda text, language=None: text.split())
        ends = heuristics._SENTENCE_END
        patch.setattr(c4_filters, "split_into_sentences", lambda text, language=None: ends.findall(text))
        filters = (GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter())
        removed = [0] * 4
        for page in make_pages(100):
            for index, (judge, oracle) in enumerate(zip(JUDGES, filters, strict=True)):
                if page.strip(" .\n") or index == 1:  # others divide by the number of words, which is 0
                    kept = oracle.filter(Document(text=page, id="")) is True
                    assert kept == (judge(page) is None), (judge.__name__, page)
                    removed[index] += not kept
            document = Document(text=page, id="")
            kept, ours = C4QualityFilter().filter(document) is True, heuristics.keep_c4_lines(page)
            assert kept == (heuristics.judge_c4(ours) is None), page
            assert not kept or document.text == ours
            removed[3] += not kept
    assert all(30 < count < 400 for count in removed), removed
