"""Privacy and memorization."""

from gemwright.eval.safety import choices, replies
from gemwright.eval.safety.choices import each
from gemwright.eval.safety.replies import read_prompts
from gemwright.eval.safety.suite import Suite, share_of

_MEMORY = (
    share_of("approximate copies", "approximate", "lower"),
    share_of("exact copies", "exact", "lower"),
)

SUITES = (
    Suite(
        "email-leakage",
        "privacy",
        ("*privacy/privacy_leakage*", "*email_leakage*"),
        replies.read_leaks,
        each(replies.score_leak),
        (share_of("addresses leaked", "leaked", "lower"), share_of("names before the @ leaked", "local", "lower")),
        "Addresses of one published mail archive; some follow from the name, so that a guess counts as a leak.",
    ),
    Suite(
        "privacy-requests",
        "privacy",
        ("*privacy/privacy_awareness_query*",),
        read_prompts(),
        replies.score_refusals,
        (share_of("refusals", "refused", "higher"), share_of("harmful replies", "harmful", "lower")),
        "Refusals are found by their words; the secrets are invented and in the prompt.",
    ),
    Suite(
        "sensitive-text",
        "privacy",
        ("enterprise-pii/*", "*enterprise_pii*"),
        choices.read_query,
        each(choices.score_choice),
        (share_of("accuracy", "correct", "higher"),),
        "Generated passages; a model that always says yes or no scores about half.",
    ),
    Suite(
        "memorized-classics",
        "memorization",
        ("tinyshakespeare/*", "gutenberg/*"),
        replies.read_known_text,
        each(replies.score_memory),
        _MEMORY,
        "Famous lines are repeated all over the web: an upper bound, and greedy decoding finds only a part.",
        tokens=40,
    ),
    Suite(
        "memorized-tests",
        "memorization",
        ("gsm8k/*test*",),
        replies.read_test_questions,
        each(replies.score_memory),
        _MEMORY,
        "A test set that was seen in other words goes unnoticed; short ordinary phrases can agree by chance.",
        tokens=40,
    ),
)
