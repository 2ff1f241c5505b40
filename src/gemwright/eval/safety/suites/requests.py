"""Refusal of harmful requests, and answers to harmless ones."""

from collections.abc import Callable

from gemwright.eval.safety import replies
from gemwright.eval.safety.choices import Read, each
from gemwright.eval.safety.records import Record
from gemwright.eval.safety.replies import read_prompts
from gemwright.eval.safety.suite import Suite, share_of

_WORDS = "Refusals are found by their words; a base model that rambles neither refuses nor helps"
_REFUSE = (share_of("refusals", "refused", "higher"), share_of("harmful replies", "harmful", "lower"))
_ANSWER = (share_of("refusals", "refused", "lower"),)


def _harmful(
    name: str, patterns: tuple[str, ...], cannot_say: str, read: Read | None = None, area: str = "refusal"
) -> Suite:
    return Suite(
        name, area, patterns, read or read_prompts(), replies.score_refusals, _REFUSE, f"{_WORDS}. {cannot_say}"
    )


def _harmless(name: str, patterns: tuple[str, ...], cannot_say: str, read: Read | None = None) -> Suite:
    return Suite(
        name, "over-refusal", patterns, read or read_prompts(), replies.score_refusals, _ANSWER,
        f"{_WORDS}. {cannot_say}",
    )  # fmt: skip


def _tagged(field: str, *kinds: str) -> Callable[[Record], bool]:
    """Return whether a record has one of some values in a field."""

    def keep(record: Record) -> bool:
        return str(record.get(field) or "").lower() in kinds

    return keep


_HARMBENCH = ("harmbench/*all*", "harmbench/*")
_TRUSTLLM = "*safety/"
SUITES = (
    _harmful("advbench", ("advbench/*",), "Many of its requests are near copies of one another."),
    _harmful(
        "harmbench",
        _HARMBENCH,
        "Requests without an attack; the published metric is a classifier of the behavior.",
        read_prompts(lambda record: str(record.get("functionalcategory") or "standard").lower() != "copyright"),
    ),
    _harmful(
        "harmbench-copyright",
        _HARMBENCH,
        "It does not compare the reply with the protected text.",
        read_prompts(_tagged("functionalcategory", "copyright")),
        area="memorization",
    ),
    _harmful("malicious-instruct", ("malicious-instruct/*",), "Only 100 short requests."),
    _harmful(
        "simple-safety-tests",
        ("simple-safety-tests/*",),
        "It finds critical gaps; a perfect score is no proof of safety.",
    ),
    _harmful("dangerous-qa", ("*/dangerousqa*", "dangerousqa/*"), "Short questions with given adjectives."),
    _harmful(
        "harmful-qa",
        ("*/harmfulqa*", "harmfulqa/*"),
        "Questions by academic topic, several of which a careful answer may treat.",
    ),
    _harmful("cat-qa", ("*/catqa*", "catqa/*"), "English only; fifty questions for each of eleven kinds of harm."),
    _harmful("do-not-answer", ("do-not-answer/*",), "Some questions deserve an answer with care."),
    _harmful("strong-reject", ("strong-reject/*",), "The published metric grades how useful a reply is."),
    _harmful(
        "jailbreak-bench",
        ("jailbreakbench/*harmful*", "jbb*/*harmful*"),
        "The plain requests, without the attacks of the benchmark.",
        read_prompts(prompt=("goal", "prompt")),
    ),
    _harmful(
        "misuse",
        (f"{_TRUSTLLM}misuse*",),
        "It is drawn from other sets, so that it overlaps with them.",
    ),
    _harmful(
        "jailbreaks",
        (f"{_TRUSTLLM}jailbreak.*",),
        "Old attacks by template; a model that does not understand the disguise seems safe.",
        replies.read_jailbreaks,
    ),
    _harmful(
        "xstest-unsafe",
        ("xstest/*",),
        "Contrasts to the safe prompts: read it together with them.",
        read_prompts(lambda record: not replies.is_safe_xstest(record)),
    ),
    Suite(
        "prompt-injection",
        "refusal",
        ("cyberseceval/*prompt_injection*", "*prompt_injection*"),
        replies.read_injections,
        each(replies.score_injection),
        (share_of("injections followed", "followed", "lower"),),
        "Only injections whose success is a word in the reply; a base model that repeats its prompt seems to follow.",
        tokens=48,
    ),
    _harmful(
        "multilingual-requests",
        ("multijail/*", "*multijail*"),
        "The words of refusals are English: without a scorer of replies only the English part means anything.",
        replies.read_translated,
        area="multilingual",
    ),
    _harmless(
        "xstest-safe",
        ("xstest/*",),
        "To answer is not to answer well.",
        read_prompts(replies.is_safe_xstest),
    ),
    _harmless(
        "exaggerated-safety",
        (f"{_TRUSTLLM}exaggerated_safety*",),
        "Most of its prompts are those of XSTest.",
    ),
    _harmless(
        "security-false-refusal",
        ("cyberseceval/*frr*", "*mitre_frr*"),
        "Security questions only, judged benign by the authors of the set.",
        read_prompts(prompt=("mutated_prompt", "prompt")),
    ),
    _harmless(
        "or-bench",
        ("or-bench/*",),
        "Prompts were written and filtered by models.",
    ),
    _harmless(
        "jailbreak-bench-benign",
        ("jailbreakbench/*benign*", "jbb*/*benign*"),
        "Benign twins of the harmful requests, some of them borderline.",
        read_prompts(prompt=("goal", "prompt")),
    ),
)
