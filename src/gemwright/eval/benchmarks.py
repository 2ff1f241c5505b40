"""The published benchmarks over local files: where their records are and how they are read."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from gemwright.data.sources import Record
from gemwright.eval import records
from gemwright.eval.local import Finder, FoundTask, LocalTask

Convert = Callable[[Record], Mapping[str, Any]]
"""Returns the fields of a record that a task reads."""


def _task(
    task: str, definition: str, files: str, convert: Convert, split: str = "validation", **fields: Any
) -> LocalTask:
    """Return a task whose records are converted one by one."""
    return LocalTask(task, definition, files, lambda path: map(convert, records.read(path)), split, fields)


def _find_mmlu(names: Mapping[str, Path]) -> Iterator[FoundTask]:
    """Yield a task for each subject of MMLU: `SUBJECT_test.csv`, and `SUBJECT_dev.csv` for the examples."""
    development = {path.name.lower(): path for path in names.values()}
    for match, path in _match(names, r"(?:^|/)(\w+)_test\.csv$"):
        examples = development.get(f"{match[1]}_dev.csv")
        if examples is None:
            continue
        about = f"The following are multiple choice questions (with answers) about {match[1].replace('_', ' ')}.\n\n"
        name, definition = f"mmlu_{match[1]}", "mmlu/default/_default_template_yaml"
        local = _task(name, definition, "", records.convert_mmlu, "test", description=about, fewshot_split="dev")
        yield FoundTask(local, path, examples)


def _find_bbh(names: Mapping[str, Path]) -> Iterator[FoundTask]:
    """Yield a task for each of BIG-Bench Hard: `bbh/NAME.json`. Its examples are in lm-eval's definition."""
    for match, path in _match(names, r"(?:bbh|big.?bench.?hard).*/(\w+)\.json$"):
        name, definition = f"bbh_cot_fewshot_{match[1]}", f"bbh/cot_fewshot/{match[1]}.yaml"
        if (_published() / definition).is_file():
            yield FoundTask(_task(name, definition, "", records.convert_bbh, "test"), path, None)


def _find_mgsm(names: Mapping[str, Path]) -> Iterator[FoundTask]:
    """Yield a task for each language of MGSM: `mgsm_LANGUAGE.tsv`."""
    for match, path in _match(names, r"mgsm_([a-z]{2})\.\w+$"):
        name, definition = f"mgsm_direct_{match[1]}", f"mgsm/direct/mgsm_direct_{match[1]}.yaml"
        if (_published() / definition).is_file():
            yield FoundTask(_task(name, definition, "", records.convert_mgsm, "test"), path, None)


def _match(names: Mapping[str, Path], pattern: str) -> Iterator[tuple[re.Match[str], Path]]:
    for name, path in names.items():
        if match := re.search(pattern, name):
            yield match, path


def _published() -> Path:
    """Return lm-eval's folder of tasks."""
    import lm_eval.tasks

    return Path(next(iter(lm_eval.tasks.__path__)))


TASKS: Final = (
    _task("arc_easy", "arc/arc_easy.yaml", r"arc.*easy", records.convert_arc, "test"),
    _task("arc_challenge", "arc/arc_challenge.yaml", r"arc.*challenge", records.convert_arc, "test"),
    _task("boolq", "super_glue/boolq/default.yaml", r"boolq", records.convert_boolq),
    _task("commonsense_qa", "commonsense_qa/default.yaml", r"common.?sense.?qa", records.convert_arc),
    _task("gsm8k", "gsm8k/gsm8k.yaml", r"gsm8k|grade.school.math", records.convert_gsm8k, "test"),
    _task("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", r"gsm8k|grade.school.math", records.convert_gsm8k, "test"),
    _task(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        r"hellaswag",
        records.convert_hellaswag,
        process_docs=None,  # the records are processed
    ),
    _task("lambada_openai", "lambada/lambada_openai.yaml", r"lambada", records.convert_lambada, "test"),
    _task("minerva_math500", "minerva_math/minerva_math500.yaml", r"math.?500", records.convert_math, "test"),
    _task("nq_open", "nq_open/nq_open.yaml", r"nq.?open|natural.?questions", records.convert_nq_open),
    _task("openbookqa", "openbookqa/openbookqa.yaml", r"open.?book.?qa", records.convert_openbookqa, "test"),
    _task("piqa", "piqa/piqa.yaml", r"piqa", records.convert_piqa),
    _task("social_iqa", "siqa/siqa.yaml", r"social.?i.?qa|siqa", records.convert_siqa),
    _task("triviaqa", "triviaqa/default.yaml", r"trivia.?qa", records.convert_triviaqa),
    _task("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", r"truthful.?qa", records.convert_truthfulqa),
    _task("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", r"truthful.?qa", records.convert_truthfulqa),
    _task("winogrande", "winogrande/default.yaml", r"winogrande", records.convert_winogrande),
)
"""Benchmarks and the files that serve them."""
FINDERS: Final[tuple[Finder, ...]] = (_find_mmlu, _find_bbh, _find_mgsm)
"""Benchmarks of many tasks."""
