"""IFEval's checks against those of lm-eval, on texts that follow each kind of instruction or do not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM

from gemwright.errors import DataError
from gemwright.eval import ifeval
from gemwright.eval.local import find_tasks, write_tasks

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("langdetect")
pytest.importorskip("immutabledict")

CASES: dict[str, list[dict[str, Any]]] = {
    "keywords:existence": [{"keywords": ["river", "stone"]}],
    "keywords:frequency": [
        {"keyword": "river", "frequency": 2, "relation": relation} for relation in ("less than", "at least")
    ],
    "keywords:forbidden_words": [{"forbidden_words": ["stone", "sand"]}],
    "keywords:letter_frequency": [
        {"letter": letter, "let_frequency": 5, "let_relation": relation}
        for letter in "eR"
        for relation in ("less than", "at least")
    ],
    "language:response_language": [{"language": code} for code in ("en", "de", "hi")],
    "length_constraints:number_sentences": [
        {"num_sentences": 3, "relation": relation} for relation in ("less than", "at least")
    ],
    "length_constraints:number_paragraphs": [{"num_paragraphs": number} for number in (1, 2, 3)],
    "length_constraints:number_words": [
        {"num_words": 12, "relation": relation} for relation in ("less than", "at least")
    ],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 2, "nth_paragraph": place, "first_word": word}
        for place in (1, 2)
        for word in ("the", "Stone")
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": number} for number in (1, 2)],
    "detectable_content:postscript": [{"postscript_marker": marker} for marker in ("P.S.", "P.P.S", "Note:")],
    "detectable_format:number_bullet_lists": [{"num_bullets": number} for number in (1, 2, 3)],
    "detectable_format:constrained_response": [{}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": number} for number in (1, 2, 4)],
    "detectable_format:multiple_sections": [
        {"section_spliter": mark, "num_sections": 2} for mark in ("Section", "SECTION", "PART")
    ],
    "detectable_format:json_format": [{}],
    "detectable_format:title": [{}],
    "combination:two_responses": [{}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "The river is wide."}],
    "startend:end_checker": [{"end_phrase": "over the stone."}],
    "startend:quotation": [{}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": 2, "capital_relation": relation} for relation in ("less than", "at least")
    ],
    "change_case:english_capital": [{}],
    "change_case:english_lowercase": [{}],
    "punctuation:no_comma": [{}],
}
PIECES = [
    "The river is wide. Mr. Stone walks along it, e.g. in spring! Does he swim?",
    "THE RIVER IS WIDE AND THE STONES ARE OLD",
    "the river is quiet at night and nobody walks there",
    "Der Fluss ist breit und niemand geht am Abend dorthin.",
    "नदी बहुत चौड़ी है और शाम को वहाँ कोई नहीं जाता।",
    "* one\n* two\n- three",
    "*a highlight* and **another one** and ** **",
    "Section 1\nwords\nSection 2\nwords\nPART 3",
    "[name] and [address] or []",
    "P.S. remember it",
    "p.p.s. and that, note: more",
    "<<River song>>",
    "<<>>",
    "******",
    "***",
    "\n\n",
    "'stone, he said'",
    '"',
    '```json\n{"river": [1, 2]}\n```',
    '{"river": ',
    "My answer is maybe.",
    "He went home at 5 p.m. and slept over the Stone.",
    "NASA and U.S. AIR",
    "   ",
    '"All of it is quoted."',
]
LANGUAGE_TEXTS = [*PIECES[:5], "12 + 3", f"Sure.\n{PIECES[2]}"]  # few, since detecting a language takes long


@pytest.fixture(scope="module")
def theirs() -> Any:
    """lm-eval's checks, with our sentences in place of the model that they download."""
    import nltk
    import nltk.tokenize

    punkt = ifeval._load_punkt()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda *_: None)
        patch.setattr(nltk.data, "load", lambda *_: punkt)
        patch.setattr(nltk.tokenize, "_get_punkt_tokenizer", lambda *_: punkt)
        from lm_eval.tasks.ifeval import utils

        yield utils


def make_texts() -> list[str]:
    draw = random.Random(0)
    joined = [
        "".join(draw.choice([" ", "\n", "\n\n"]) + draw.choice(PIECES) for _ in range(draw.randint(2, 6)))
        for _ in range(30)
    ]
    return [*PIECES, *joined, *(text.strip() for text in joined[:10]), "The river is wide.\n\nStone, and sand.", ""]


@pytest.mark.parametrize("kind", ifeval.INSTRUCTIONS)
def test_checks_decide_as_those_of_lm_eval(kind: str, theirs: Any):
    verdicts: set[bool] = set()
    for arguments in CASES[kind]:
        for text in LANGUAGE_TEXTS if "language" in kind or "english" in kind else make_texts():
            example = theirs.InputExample(0, [kind], "The river is wide.", [arguments])
            strict = theirs.test_instruction_following_strict(example, text).follow_all_instructions
            loose = theirs.test_instruction_following_loose(example, text).follow_all_instructions
            document = {"instruction_id_list": [kind], "kwargs": [arguments]}
            found = ifeval.score(document, [text])
            assert found["prompt_level_strict_acc"] == strict, (arguments, text)
            assert found["prompt_level_loose_acc"] == loose, (arguments, text)
            verdicts.add(strict)
    assert verdicts == {True, False}


def test_the_kinds_are_those_of_lm_eval(theirs: Any):
    from lm_eval.tasks.ifeval import instructions_registry

    assert set(ifeval.INSTRUCTIONS) == set(instructions_registry.INSTRUCTION_DICT) == set(CASES)


def test_scores_of_several_instructions(theirs: Any):
    document = {
        "key": 1,
        "prompt": "p",
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{"num_words": None}, {}],
    }
    for text in ("one, two", '"one"', 'Sure\n"one"', '"one, two"'):
        assert ifeval.score(document, [text]) == theirs.process_results(document, [text])
    assert ifeval.average([[True, False], [True]]) == theirs.agg_inst_level_acc([[True, False], [True]]) == 2 / 3


def test_abbreviations_end_no_sentence():
    text = "Dr. Stone lives in the U.S. with Mrs. Sand. They met at 5 p.m. in St. Moritz. It rained."
    assert ifeval.split_sentences(text) == [
        "Dr. Stone lives in the U.S. with Mrs. Sand.",
        "They met at 5 p.m. in St. Moritz.",
        "It rained.",
    ]


def test_characters_other_than_letters_are_counted():
    arguments = {"letter": "!", "let_frequency": 2, "let_relation": "at least"}
    assert ifeval.check("keywords:letter_frequency", "Oh! No!", arguments)
    assert not ifeval.check("keywords:letter_frequency", "Oh! No.", arguments)


class Fixed(LM):
    """A model that always gives the same reply."""

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return ["No commas."] * len(requests)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def test_the_definition_reads_local_files(tmp_path: Path):
    record = {"key": 1, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma", "keywords:existence"]}
    record["kwargs"] = [{}, {"keywords": ["Write"]}]
    (tmp_path / "ifeval").mkdir()
    (tmp_path / "ifeval/prompt_instructions.jsonl").write_text(json.dumps(record))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = write_tasks(find_tasks(tmp_path, ifeval.TASKS), tmp_path)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(model=Fixed(), tasks=names, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    assert results["results"]["gemwright_ifeval"]["inst_level_strict_acc,none"] == 0.5


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("no:such", {}),
        ("length_constraints:number_words", {"relation": "at least"}),
        ("keywords:existence", {"keywords": ["("]}),
    ],
)
def test_invalid_data_are_named(kind: str, arguments: dict[str, Any]):
    with pytest.raises(DataError, match=kind):
        ifeval.check(kind, "text", arguments)
