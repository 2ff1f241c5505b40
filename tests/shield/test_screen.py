"""Which parts of a reply are shown, and when."""

import pytest

import gemwright
from gemwright.errors import PolicyError
from gemwright.shield.classifier import Shield
from gemwright.shield.policy import Policy
from gemwright.shield.screen import MOST_HELD, Sentences, screen

pytestmark = pytest.mark.usefixtures("quick_compilation")
PIECES = ["The", " thing", ". ", "And", ' "then', '." ', "3", ".", "14", " one", "\n", "\n", "On"]


def judged(pieces: list[str]) -> list[str]:
    sentences = Sentences()
    return [sentences.text for piece in pieces if sentences.push(piece)]


def test_text_is_judged_at_the_ends_of_sentences():
    assert judged(PIECES) == ["The thing. ", 'The thing. And "then." ', 'The thing. And "then." 3.14 one\n']
    assert judged(["私。", "は"]) == ["私。"]
    assert [len(text) for text in judged(["abc "] * 300)] == [MOST_HELD + 4, 2 * (MOST_HELD + 4)]


def test_what_is_shown_has_been_judged(model: gemwright.Model):
    """With a threshold between the scores, the part that raises the score and all after it is withheld."""
    policy = Policy("a", {"output": "no a in it"})
    score = Shield(model, (policy,)).score
    text, sentences = "the", ["The thing. ", "And on. ", "In there. ", "What. "]
    scores = [score(text, "".join(sentences[: count + 1]))["a"] for count in range(4)]
    first = next(count for count in range(1, 4) if scores[count] > max(scores[:count]))
    threshold = (scores[first] + max(scores[:first])) / 2
    shield, shown = Shield(model, (Policy("a", policy.guidelines, threshold),)), []
    pieces = [letter for sentence in sentences for letter in sentence]
    parts = screen(shield, text, iter(pieces))
    with pytest.raises(PolicyError, match=r"^The reply is refused by the policy 'a' \(score 0\.\d\d\)\.$"):
        shown.extend(parts)
    assert shown == sentences[:first]
    passing = Shield(model, (Policy("a", policy.guidelines, 1.0),))
    assert "".join(screen(passing, text, iter([*pieces, "the rest"]))) == "".join([*pieces, "the rest"])
