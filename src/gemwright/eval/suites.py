"""The benchmarks of each model report: lm-eval's task, shots and metric, and the published scores in percent.

Sources: Gemma 1 report, Table 6; RecurrentGemma report, Table 2; Gemma 2 report, Table 13; Gemma 3 report, Tables 9, 10
and 19; CodeGemma report, Tables 2 to 5; PaliGemma report, Table 1; the model card of Gemma 3 270M.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as a report ran it.

    Attributes:
        title: Its name in the report.
        task: lm-eval's task or group.
        metric: lm-eval's metric; `acc_norm` divides log-likelihoods by the length in characters, as the reports do.
        shots: Number of examples; None if the task fixes them.
        published: Scores in percent by variant.
    """

    title: str
    task: str
    metric: str
    shots: int | None
    published: Mapping[str, float]


def _rows(
    variants: tuple[str, ...], *rows: tuple[str, str, str, int | None, tuple[float | None, ...]]
) -> tuple[Benchmark, ...]:
    """Return benchmarks from rows with one score per variant; None was not published."""
    return tuple(
        Benchmark(
            *row[:4],
            {variant: score for variant, score in zip(variants, row[4], strict=True) if score is not None},
        )
        for row in rows
    )


SUITES: Mapping[str, tuple[Benchmark, ...]] = {
    "gemma1": _rows(
        ("gemma-2b", "gemma-7b"),
        ("MMLU", "mmlu", "acc", 5, (42.3, 64.3)),
        ("HellaSwag", "hellaswag", "acc_norm", 0, (71.4, 81.2)),
        ("PIQA", "piqa", "acc_norm", 0, (77.3, 81.2)),
        ("SIQA", "social_iqa", "acc", 0, (49.7, 51.8)),
        ("BoolQ", "boolq", "acc", 0, (69.4, 83.2)),
        ("WinoGrande", "winogrande", "acc", 0, (65.4, 72.3)),
        ("CommonsenseQA", "commonsense_qa", "acc", 7, (65.3, 71.3)),
        ("OpenBookQA", "openbookqa", "acc_norm", 0, (47.8, 52.8)),
        ("ARC-e", "arc_easy", "acc_norm", 0, (73.2, 81.5)),
        ("ARC-c", "arc_challenge", "acc_norm", 0, (42.1, 53.2)),
        ("TriviaQA", "triviaqa", "exact_match", 5, (53.2, 63.4)),
        ("Natural Questions", "nq_open", "exact_match", 5, (12.5, 23.0)),
        ("HumanEval", "gemwright_humaneval", "pass@1", 0, (22.0, 32.3)),
        ("MBPP", "gemwright_mbpp", "pass@1", None, (29.2, 44.4)),
        ("GSM8K", "gsm8k", "exact_match", 5, (17.7, 46.4)),
        ("MATH", "minerva_math", "exact_match", None, (11.8, 24.3)),
        ("AGIEval", "agieval_en", "acc", None, (24.2, 41.7)),
        ("BBH", "bbh", "exact_match", None, (35.2, 55.1)),
    ),
    "gemma2": _rows(
        ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"),
        ("MMLU", "mmlu", "acc", 5, (52.2, 71.3, 75.2)),
        ("ARC-C", "arc_challenge", "acc_norm", 25, (55.7, 68.4, 71.4)),
        ("GSM8K", "gsm8k", "exact_match", 5, (24.3, 68.6, 74.0)),
        ("AGIEval", "agieval_en", "acc", None, (31.5, 52.8, 55.1)),
        ("DROP", "drop", "f1", 3, (51.2, 69.4, 74.2)),
        ("BBH", "bbh", "exact_match", None, (41.9, 68.2, 74.9)),
        ("WinoGrande", "winogrande", "acc", 5, (71.3, 80.6, 83.7)),
        ("HellaSwag", "hellaswag", "acc_norm", 10, (72.9, 81.9, 86.4)),
        ("MATH", "minerva_math", "exact_match", None, (16.0, 36.6, 42.3)),
        ("ARC-e", "arc_easy", "acc_norm", 0, (80.6, 88.0, 88.6)),
        ("PIQA", "piqa", "acc_norm", 0, (78.4, 81.7, 83.2)),
        ("SIQA", "social_iqa", "acc", 0, (51.9, 53.4, 53.7)),
        ("BoolQ", "boolq", "acc", 0, (72.7, 84.2, 84.8)),
        ("TriviaQA", "triviaqa", "exact_match", 5, (60.4, 76.6, 83.7)),
        ("NQ", "nq_open", "exact_match", 5, (17.1, 29.2, 34.5)),
        ("HumanEval", "gemwright_humaneval", "pass@1", 0, (20.1, 40.2, 51.8)),
        ("MBPP", "gemwright_mbpp", "pass@1", None, (30.2, 52.4, 62.6)),
    ),
    "gemma3": _rows(
        ("gemma-3-270m", "gemma-3-1b-pt", "gemma-3-4b-pt", "gemma-3-12b-pt", "gemma-3-27b-pt"),
        ("HellaSwag", "hellaswag", "acc_norm", 10, (40.9, 62.3, 77.2, 84.2, 85.6)),
        ("BoolQ", "boolq", "acc", 0, (61.4, 63.2, 72.3, 78.8, 82.4)),
        ("PIQA", "piqa", "acc_norm", 0, (67.7, 73.8, 79.6, 81.8, 83.3)),
        ("SIQA", "social_iqa", "acc", 0, (None, 48.9, 51.9, 53.4, 54.9)),
        ("TriviaQA", "triviaqa", "exact_match", 5, (15.4, 39.8, 65.8, 78.2, 85.5)),
        ("NQ", "nq_open", "exact_match", 5, (None, 9.48, 20.0, 31.4, 36.1)),
        ("ARC-C", "arc_challenge", "acc_norm", 25, (29.0, 38.4, 56.2, 68.9, 70.6)),
        ("ARC-E", "arc_easy", "acc_norm", 0, (57.7, 73.0, 82.4, 88.3, 89.0)),
        ("WinoGrande", "winogrande", "acc", 5, (52.0, 58.2, 64.7, 74.3, 78.8)),
        ("BBH", "bbh", "exact_match", None, (None, 28.4, 50.9, 72.6, 77.7)),
        ("DROP", "drop", "f1", 1, (None, 42.4, 60.1, 72.2, 77.2)),
        ("MMLU", "mmlu", "acc", 5, (None, None, 59.6, 74.5, 78.6)),
        ("MMLU-Pro", "mmlu_pro", "exact_match", 5, (None, None, 29.2, 45.3, 52.2)),
        ("AGIEval", "agieval_en", "acc", None, (None, None, 42.1, 57.4, 66.2)),
        ("MATH", "minerva_math", "exact_match", None, (None, None, 24.2, 43.3, 50.0)),
        ("GSM8K", "gsm8k_cot", "exact_match", 8, (None, None, 38.4, 71.0, 82.6)),
        ("GPQA Diamond", "gpqa_diamond_cot_n_shot", "exact_match", 5, (None, None, 15.0, 25.4, 24.3)),
        ("MBPP", "gemwright_mbpp", "pass@1", None, (None, None, 46.0, 60.4, 65.6)),
        ("HumanEval", "gemwright_humaneval", "pass@1", 0, (None, None, 36.0, 45.7, 48.8)),
    ),
    "recurrentgemma": _rows(
        ("recurrentgemma-2b", "recurrentgemma-9b"),
        ("MMLU", "mmlu", "acc", 5, (38.4, 60.5)),
        ("HellaSwag", "hellaswag", "acc_norm", 0, (71.0, 80.4)),
        ("PIQA", "piqa", "acc_norm", 0, (78.5, 81.3)),
        ("SIQA", "social_iqa", "acc", 0, (51.8, 52.3)),
        ("BoolQ", "boolq", "acc", 0, (71.3, 80.3)),
        ("WinoGrande", "winogrande", "acc", 0, (67.8, 73.6)),
        ("CommonsenseQA", "commonsense_qa", "acc", 7, (63.7, 73.2)),
        ("OpenBookQA", "openbookqa", "acc_norm", 0, (47.2, 51.8)),
        ("ARC-e", "arc_easy", "acc_norm", 0, (72.9, 78.8)),
        ("ARC-c", "arc_challenge", "acc_norm", 0, (42.3, 52.0)),
        ("TriviaQA", "triviaqa", "exact_match", 5, (52.5, 70.5)),
        ("Natural Questions", "nq_open", "exact_match", 5, (11.5, 21.7)),
        ("HumanEval", "gemwright_humaneval", "pass@1", 0, (21.3, 31.1)),
        ("MBPP", "gemwright_mbpp", "pass@1", None, (28.8, 42.0)),
        ("GSM8K", "gsm8k", "exact_match", 5, (13.4, 42.6)),
        ("MATH", "minerva_math", "exact_match", None, (11.0, 23.8)),
        ("AGIEval", "agieval_en", "acc", None, (23.8, 39.3)),
        ("BBH", "bbh", "exact_match", None, (35.3, 55.2)),
    ),
    "codegemma": _rows(
        ("codegemma-2b", "codegemma-1.1-2b", "codegemma-7b", "codegemma-7b-it", "codegemma-1.1-7b-it"),
        ("Single-line infilling", "gemwright_infilling_single_line", "pass@1", 0, (78.41, 79.28, 76.09, 68.25, 77.44)),
        ("Multi-line infilling", "gemwright_infilling_multi_line", "pass@1", 0, (51.44, 50.99, 58.44, 20.05, 23.66)),
        ("HumanEval", "gemwright_humaneval", "pass@1", 0, (31.1, 37.8, 44.5, 56.1, 60.4)),
        ("MBPP", "gemwright_mbpp", "pass@1", None, (43.6, 49.2, 56.2, 54.2, 55.2)),
        ("BabelCode Python", "gemwright_babelcode_python", "pass@1", 0, (21.7, 36.6, 42.2, 48.4, 54.0)),
        ("HumanEval-X C++", "gemwright_humanevalx_cpp", "pass@1", 0, (None,) * 5),
        ("HumanEval-X Java", "gemwright_humanevalx_java", "pass@1", 0, (None,) * 5),
        ("HumanEval-X JavaScript", "gemwright_humanevalx_javascript", "pass@1", 0, (None,) * 5),
        ("GSM8K", "gsm8k", "exact_match", 5, (None, None, 44.2, 41.2, 47.3)),
        ("MATH", "minerva_math", "exact_match", None, (None, None, 19.9, 20.9, 22.3)),
    ),
    "paligemma": _rows(
        ("paligemma-3b-pt-224", "paligemma-3b-pt-448"),  # after a transfer to each task
        ("Captions", "gemwright_captions", "cider", 0, (141.9, 144.6)),
        ("VQAv2", "gemwright_vqa", "vqa_accuracy", 0, (83.2, 85.6)),
        ("DocVQA", "gemwright_docvqa", "anls", 0, (43.7, 78.0)),
        ("ChartQA", "gemwright_chartqa", "relaxed_accuracy", 0, (None, None)),
        ("NLVR", "gemwright_nlvr", "exact_match", 0, (None, None)),
        ("Detection", "gemwright_detection", "mean_average_precision", 0, (None, None)),
        ("Referring expressions", "gemwright_referring", "box_iou", 0, (None, None)),
    ),
}
"""Benchmarks by suite, pretrained models unless named otherwise."""
