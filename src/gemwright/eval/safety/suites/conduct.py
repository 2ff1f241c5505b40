"""Dangerous capabilities, stated inclinations, sycophancy and machine ethics."""

from gemwright.eval.safety import choices
from gemwright.eval.safety.choices import each
from gemwright.eval.safety.suite import Better, Suite, share_of

_CORRECT = share_of("accuracy", "correct", "higher")
_STATED = "Answers to written questions; what a model would do is another matter, and base models have no stance."


def _behavior(name: str, pattern: str, area: str, title: str, better: Better = "lower") -> Suite:
    return Suite(
        name,
        area,
        (f"anthropic-evals/*{pattern}*", f"*/{pattern}*.jsonl"),
        choices.read_behavior,
        each(choices.score_choice),
        (share_of(title, "correct", better),),
        _STATED,
    )


def _hazard(name: str, patterns: tuple[str, ...], cannot_say: str) -> Suite:
    metrics = (share_of("accuracy", "correct", ""),)
    return Suite(
        name, "dangerous capabilities", patterns, choices.read_mmlu, each(choices.score_choice), metrics, cannot_say
    )


_STAND_IN = (
    "mmlu/*virology_test*", "mmlu/*college_chemistry_test*", "mmlu/*computer_security_test*",
)  # fmt: skip
_PROXY = "General knowledge near a dangerous field, not the hazard itself: the reports' own test is private."

SUITES = (
    _hazard("hazard-virology", _STAND_IN[:1], _PROXY),
    _hazard("hazard-chemistry", _STAND_IN[1:2], _PROXY),
    _hazard("hazard-security", _STAND_IN[2:], _PROXY),
    *(
        _hazard(f"wmdp-{part}", (f"wmdp/*{part}*",), "Proxies of hazardous knowledge: no plans, no uplift measured.")
        for part in ("bio", "chem", "cyber")
    ),
    _behavior("power-seeking", "power-seeking", "dangerous capabilities", "power-seeking answers"),
    _behavior("survival-instinct", "survival-instinct", "dangerous capabilities", "self-preserving answers"),
    _behavior("corrigibility", "corrigible-less", "dangerous capabilities", "less corrigible answers"),
    _behavior("self-awareness", "self-awareness-general", "dangerous capabilities", "answers as an AI", ""),
    _behavior("coordination", "coordinate-itself", "dangerous capabilities", "coordinating answers"),
    _behavior("sycophancy-identity", "sycophancy", "sycophancy", "answers that match the user's identity"),
    Suite(
        "sycophancy-opinion",
        "sycophancy",
        ("mmlu/*test/*", "mmlu/*"),
        choices.read_opinions,
        each(choices.score_opinion),
        (
            share_of("right answers given up", "gives_up", "lower"),
            share_of("answers changed to the stated one", "follows", "lower"),
            share_of("accuracy", "correct", "higher"),
            share_of("accuracy after the opinion", "correct_after", "higher"),
        ),
        "A model that copies the last letter it read looks sycophantic; there is one wording of the opinion.",
    ),
    Suite(
        "sycophancy-persona",
        "sycophancy",
        ("*truthfulness/sycophancy*",),
        choices.read_completions,
        each(choices.score_per_character),
        (share_of("sycophantic completions", "correct", "lower"),),
        "The likelihood of two given texts for each character, whose style may decide.",
    ),
    *(
        Suite(
            f"ethics-{part}",
            "ethics",
            (f"*ethics_{part}*", f"ethics/*{part}*"),
            choices.read_ethics,
            each(choices.score_choice),
            (_CORRECT,),
            "Everyday judgements of a few annotators in one country, and close to chance for small models.",
        )
        for part in ("justice", "deontology")
    ),
    Suite(
        "ethics-choices",
        "ethics",
        ("*ethics/explicit_moralchoice*",),
        choices.read_labelled({"a": "A", "b": "B"}, "label", group="type"),
        each(choices.score_choice),
        (_CORRECT,),
        "A model with a habit of answering A scores 50%; the hard half has no agreed answer.",
    ),
    Suite(
        "ethics-norms",
        "ethics",
        ("*ethics/implicit_ethics*",),
        choices.read_labelled({"wrong": "wrong", "not wrong": "not wrong"}, "label", group="topic"),
        each(choices.score_choice),
        (_CORRECT,),
        "The two answers have different lengths, which favors the shorter one.",
    ),
    Suite(
        "awareness",
        "ethics",
        ("*ethics/awareness*",),
        choices.read_labelled({letter.lower(): letter for letter in "ABC"}, "label", group="dimension"),
        each(choices.score_choice),
        (_CORRECT,),
        "What a model says of itself, not what it knows; some labels are a matter of taste.",
    ),
)
