"""Bias and stereotypes."""

from gemwright.eval.safety import choices, pairs, replies
from gemwright.eval.safety.choices import each
from gemwright.eval.safety.suite import Metric, Suite, mean_of, share_of
from gemwright.eval.safety.suites.published import published

_AREA = "bias and stereotypes"
_CORRECT = share_of("accuracy", "correct", "higher")
_STEREOTYPES = share_of("stereotype preferred", "stereotype", "nearer", ideal=0.5)


def _bbq(name: str, condition: str, title: str, cannot_say: str) -> Suite:
    compute = choices.ambiguous_bias_score if condition == "ambig" else choices.bias_score
    bias = Metric("bias score", ("correct", "biased", "known"), compute, "nearer")
    return Suite(
        name,
        _AREA,
        ("bbq/*",),
        choices.read_bbq(condition),
        each(choices.score_bbq),
        (_CORRECT, bias),
        cannot_say,
        published=published(title),
        protocol="1-shot for Gemma 1, 4-shot for Gemma 2; here without examples",
    )


def _crows_pairs(name: str, patterns: tuple[str, ...], cannot_say: str) -> Suite:
    metrics = (_STEREOTYPES, mean_of("mean difference in nats", "difference", "lower", percent=False))
    scores = published("CrowS-Pairs") if "french" not in name else {}
    note = "a top-1 score of unstated meaning; not the same number"
    return Suite(
        name, _AREA, patterns, pairs.read_crows_pairs, each(pairs.score_pair), metrics, cannot_say,
        published=scores, protocol=note,
    )  # fmt: skip


def _stereoset(kind: str) -> Suite:
    metrics = (
        Metric("icat", ("stereotype", "related"), pairs.idealized_score, "higher"),
        _STEREOTYPES,
        mean_of("language modeling score", "related", "higher"),
    )
    return Suite(
        f"stereoset-{kind}",
        _AREA,
        ("stereoset/*",),
        pairs.read_stereoset(kind),
        each(pairs.score_stereoset),
        metrics,
        "Many of its pairs are ill-formed or compare no stereotype; a model that prefers none may still act on them.",
    )


SUITES = (
    _bbq(
        "bbq-ambiguous",
        "ambig",
        "BBQ Ambig",
        "A model that always says that it does not know scores 100%.",
    ),
    _bbq(
        "bbq-disambiguated",
        "disambig",
        "BBQ Disambig",
        "This is reading as much as bias; the groups and stereotypes are those of the United States.",
    ),
    _crows_pairs(
        "crows-pairs",
        ("crows-pairs/*anonymized*", "crows-pairs/*english*", "crows-pairs/*"),
        "Sentences also differ in how common their words are; several pairs are known to be invalid.",
    ),
    _crows_pairs(
        "crows-pairs-french",
        ("crows-pairs/*french*",),
        "Translated and adapted pairs: the same faults as the English ones.",
    ),
    _stereoset("intrasentence"),
    _stereoset("intersentence"),
    Suite(
        "winogender",
        _AREA,
        ("winogender/all_sentences*", "winogender/*"),
        choices.read_winogender,
        each(choices.score_choice),
        (
            _CORRECT,
            Metric("gap between genders", ("correct",), replies.group_gap("correct"), "lower"),
        ),
        "720 templates about 60 occupations: reading, with a bias only in the gap between genders.",
        published=published("Winogender"),
        protocol="zero-shot, as here",
    ),
    Suite(
        "holistic-bias",
        _AREA,
        ("holistic-bias/*",),
        pairs.read_holistic_bias,
        each(pairs.score_descriptor),
        (
            Metric(
                "likelihood bias",
                tuple(f"sentence {index}" for index in range(4)),
                pairs.likelihood_bias,
                "lower",
                resamples=100,
            ),
        ),
        "Descriptors also differ in length and frequency; a difference is no harm in itself.",
    ),
    Suite(
        "bold",
        _AREA,
        ("bold/*",),
        replies.read_bold,
        replies.score_toxicity,
        (
            mean_of("average toxicity", "toxicity", "lower"),
            Metric("gap between domains", ("toxicity",), replies.group_gap("toxicity"), "lower"),
        ),
        "Toxicity only, not regard or sentiment; the number of the reports is not defined there.",
        tokens=30,
        needs_toxicity=True,
        published=published("BOLD"),
        protocol="a score of unstated meaning, higher is better; not the same number",
    ),
    Suite(
        "stereotype-agreement",
        _AREA,
        ("decodingtrust/*stereotype_user*", "*stereotype_user_prompts*"),
        choices.read_agreement,
        each(choices.score_choice),
        (share_of("agreement", "correct", "lower"),),
        "Likelihood of two fixed answers: a habit of agreeing looks like a stereotype.",
    ),
    Suite(
        "stereotype-recognition",
        _AREA,
        ("*fairness/stereotype_recognition*",),
        choices.read_labelled({"stereotype": "1", "anti-stereotype": "2", "unrelated": "3"}, "label", group="type"),
        each(choices.score_choice),
        (_CORRECT,),
        "To know a stereotype is not to hold it; a base model picks one number for nearly all.",
    ),
)
