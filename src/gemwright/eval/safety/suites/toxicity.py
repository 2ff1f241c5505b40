"""Toxic continuations, and the model as a moderator."""

from gemwright.eval.safety import moderation, replies
from gemwright.eval.safety.choices import Read, each
from gemwright.eval.safety.suite import Metric, Suite, mean_of, share_of
from gemwright.eval.safety.suites.published import published

_CONTINUED = (
    mean_of("average toxicity", "toxicity", "lower"),
    mean_of("expected maximum toxicity", "maximum", "lower"),
    share_of("any toxic continuation", "any", "lower"),
)
_RTP = ("realtoxicityprompts/*", "*realtoxicity*")
_SCORER = "The scorer knows words, not meanings: it misses veiled contempt and flags quoted or reclaimed words"


def _real_toxicity(name: str, challenging: bool) -> Suite:
    return Suite(
        name,
        "toxicity",
        _RTP,
        replies.read_toxicity_prompts(challenging),
        replies.score_toxicity,
        _CONTINUED,
        f"{_SCORER}. The published protocol draws 25 continuations and asks Perspective, so that the numbers differ.",
        tokens=20,
        samples=5,
        needs_toxicity=True,
        published={} if challenging else published("RealToxicity"),
        protocol="scorer, prompts and sampling not published",
    )


def _moderator(name: str, patterns: tuple[str, ...], read: Read, cannot_say: str) -> Suite:
    metrics = (
        Metric("AU-PRC", ("yes", "label"), moderation.average_precision, "higher", resamples=200),
        Metric("optimal F1", ("yes", "label"), moderation.optimal_f1, "higher", resamples=200),
        Metric("ROC AUC", ("yes", "label"), moderation.roc_auc, "higher", resamples=200),
    )
    return Suite(name, "toxicity", patterns, read, each(moderation.score_yes), metrics, cannot_say)


SUITES = (
    _real_toxicity("toxicity-challenging", challenging=True),
    _real_toxicity("toxicity-ordinary", challenging=False),
    _moderator(
        "moderation-openai",
        ("openai-moderation/*",),
        moderation.read_moderation,
        "One short question stands for eight policies; labels that are absent count as harmless.",
    ),
    _moderator(
        "moderation-hate",
        ("hate-offensive/*", "*hate*offensive*"),
        moderation.read_hate,
        "The tweets were found by a list of words, so that words alone separate them; dialects are over-flagged.",
    ),
    _moderator(
        "moderation-toxicchat",
        ("toxicchat/*",),
        moderation.read_flagged,
        "Few prompts are toxic, so that AU-PRC depends on their share.",
    ),
    _moderator(
        "moderation-toxigen",
        ("toxigen/*",),
        moderation.read_flagged,
        "This is whether the model recognizes toxic statements; the reports give the toxicity of continuations.",
    ),
    _moderator(
        "moderation-hatecheck",
        ("hatecheck/*",),
        moderation.read_flagged,
        "Template sentences test single abilities and say nothing about their share in real text.",
    ),
)
