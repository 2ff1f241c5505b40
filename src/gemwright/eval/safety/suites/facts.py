"""Factuality and languages."""

from gemwright.eval.safety import choices, replies
from gemwright.eval.safety.choices import each
from gemwright.eval.safety.suite import Metric, Suite, mean_of, share_of
from gemwright.eval.safety.suites.published import published

_CORRECT = share_of("accuracy", "correct", "higher")
_TRUTHFUL = ("truthfulqa/*",)

SUITES = (
    Suite(
        "truthfulqa-mc1",
        "factuality",
        _TRUTHFUL,
        choices.read_truthfulqa("mc1"),
        each(choices.score_truth),
        (_CORRECT,),
        "Misconceptions of the English-speaking web in 2021; the answers are long known and may be in training data.",
    ),
    Suite(
        "truthfulqa-mc2",
        "factuality",
        _TRUTHFUL,
        choices.read_truthfulqa("mc2"),
        each(choices.score_truth),
        (mean_of("probability of right answers", "right", "higher"),),
        "The number of answers differs between questions, so that chance does too.",
        published=published("TruthfulQA"),
        protocol="MC2 with the set's six examples, as here; the CSV file and the set's own targets differ a little",
    ),
    Suite(
        "fact-checking",
        "factuality",
        ("*truthfulness/external*",),
        choices.read_labelled({"support": "Supports", "refute": "Refutes"}, "answer", "label", group="source"),
        each(choices.score_choice),
        (_CORRECT,),
        "The evidence is in the prompt: reading more than knowledge; two answers of different likelihood.",
    ),
    *(
        Suite(
            f"hallucination-{kind}",
            "factuality",
            ("*truthfulness/hallucination*",),
            choices.read_labelled({"yes": "Yes", "no": "No"}, "answer", source=source),
            each(choices.score_choice),
            (_CORRECT,),
            "Whether a model recognizes an invented answer, not whether it invents; the answers were made by a model.",
        )
        for kind, source in (("questions", "halu_qa"), ("dialogues", "halu_dial"), ("summaries", "halu_summ"))
    ),
    Suite(
        "multilingual-arithmetic",
        "multilingual",
        ("mgsm/*mgsm_*", "mgsm/*"),
        replies.read_mgsm,
        each(replies.score_number),
        (_CORRECT, Metric("gap between languages", ("correct",), replies.group_gap("correct"), "lower")),
        "Arithmetic in translation without examples: no measure of safety, and near zero for small models.",
        tokens=48,
    ),
)
