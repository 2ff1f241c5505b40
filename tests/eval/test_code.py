"""Code tasks: their programs, their scores, and their definitions in lm-eval."""

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.model import LM

from gemwright.errors import DataError, GemwrightError
from gemwright.eval import code_scoring, code_tasks, definitions, sandbox
from gemwright.eval.code_languages import LANGUAGES, Language
from gemwright.eval.local import find_tasks, write_tasks

pytestmark = [
    pytest.mark.skipif(
        not (sandbox.works(sandbox.bubblewrap) or sandbox.works(sandbox.namespaces)), reason="no sandbox"
    ),
    pytest.mark.filterwarnings("ignore"),
]

ADD = 'def add(a: int, b: int) -> int:\n    """ Add. """\n'
PROBLEMS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": ADD,
        "entry_point": "add",
        "canonical_solution": "    c = a\n\n    c += b\n    return c\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    for number in range(3)
]


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_pass_at_k_is_the_average_over_all_choices(programs: int):
    for passed in range(programs + 1):
        for k in range(1, programs + 1):
            choices = list(itertools.combinations([index < passed for index in range(programs)], k))
            expected = sum(map(any, choices)) / len(choices)
            assert code_scoring.estimate_pass_at_k(programs, passed, k) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="undefined"):
        code_scoring.estimate_pass_at_k(programs, 0, programs + 1)


def available(name: str) -> Any:
    missing = LANGUAGES[name].find_missing_tools()
    marks = [pytest.mark.skipif(bool(missing), reason=f"{missing} is not installed")]
    return pytest.param(name, marks=[*marks, pytest.mark.slow] if name == "java" else marks)


CPP = "#include<assert.h>\nint add(int a, int b){\n    return a OPERATOR b;\n}\nint main(){ assert(add(1, 2) == 3); }"
JAVA = (
    "class Solution {\n    public int add(int a, int b) {\n        return a OPERATOR b;\n    }\n}\n"
    "public class Main { public static void main(String[] a) {\n"
    "if (new Solution().add(1, 2) != 3) throw new AssertionError(); } }"
)
JAVASCRIPT = "const add = (a, b) => {\n  return a OPERATOR b;\n}\nconsole.assert(add(1, 2) === 3)"
PYTHON = "def add(a, b):\n    return a OPERATOR b\nassert add(1, 2) == 3"
SOURCES = {"python": PYTHON, "cpp": CPP, "java": JAVA, "javascript": JAVASCRIPT}


@pytest.mark.parametrize("name", [available(name) for name in LANGUAGES])
def test_right_programs_pass_and_wrong_ones_fail(name: str):
    run = LANGUAGES[name].run
    right = run(SOURCES[name].replace("OPERATOR", "+"))
    assert right.status == "passed", right.output
    assert run(SOURCES[name].replace("OPERATOR", "-")).status == "failed"
    assert run(SOURCES[name].replace("OPERATOR", "+ nothing +")).status == "failed"


@pytest.mark.parametrize("end", ["exit()", "import os; os._exit(0)", "raise SystemExit(0)"])
def test_an_early_exit_is_no_pass(end: str):
    assert LANGUAGES["python"].run(f"{end}\nassert False").status == "failed"


def test_a_missing_tool_is_named():
    language = Language("COBOL", ("no-such-compiler",), "main.cob", ("true",))
    with pytest.raises(GemwrightError, match="Programs in COBOL need no-such-compiler"):
        language.require()


def test_infilling_problems_join_to_the_solution():
    solution = str(PROBLEMS[0]["canonical_solution"])
    single, multi = list(code_tasks.split_single_line(solution)), list(code_tasks.split_multi_line(solution))
    assert [middle for _, middle, _ in single] == ["    c = a", "    c += b", "    return c"]
    assert len(multi) == 3 * 4 // 2
    assert ("", "    c = a\n\n    c += b", "\n    return c\n") in multi
    assert all("".join(parts) == solution for parts in (*single, *multi))


def test_infilling_prompts_are_taken_apart():
    split = code_tasks.split_infilling_prompt
    assert split("<|fim_prefix|>a = 1\n<|fim_suffix|>\nb<|fim_middle|>") == ("a = 1\n", "\nb")
    assert split("a = 1") is None
    assert split("<|fim_prefix|>a<|fim_middle|>") is None


def test_a_gap_takes_replies_with_and_without_a_newline():
    document = {**PROBLEMS[0], "prompt": f"{ADD}    c = a\n", "suffix": "    return c\n"}
    programs = [code_scoring.make_infilling(reply, document) for reply in ("    c += b", "    c += b\n")]
    assert programs[0] == programs[1]
    assert LANGUAGES["python"].run(programs[0]).status == "passed"


def test_babelcode_prompts_end_before_the_body(tmp_path: Path):
    solution = "import math\n\ndef half(n):\n    return n / 2\n\ndef quarter(n):\n    return half(n) / 2\n"
    record = {"title": "T/0", "solution": solution, "entry_fn_name": "quarter", "text": 'A """ quarter\\2.'}
    record["testing_code"] = "assert quarter(4) == 1"
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(record))
    (found,) = code_tasks.read_babelcode(file)
    assert found["prompt"].startswith(solution[: solution.index("    return half")])
    assert LANGUAGES["python"].run(code_scoring.make_babelcode(found["canonical_solution"], found)).status == "passed"
    file.write_text(json.dumps(record | {"entry_fn_name": "third"}))
    with pytest.raises(DataError, match="T/0 defines no function third"):
        list(code_tasks.read_babelcode(file))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_lines_are_named(tmp_path: Path, text: str):
    file = tmp_path / "problems.jsonl"
    file.write_text(f"{{}}\n{text}\n")
    with pytest.raises(DataError, match="line 2"):
        list(definitions.read_lines(file))


class Oracle(LM):
    """A model that knows the solutions to all but the last problem, cut at the stop strings."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return [self.reply(*request.args, request.doc) for request in requests]

    def reply(self, prompt: str, options: dict[str, Any], document: dict[str, Any]) -> str:
        self.prompts.append(prompt)
        reply = str(document.get("code") or document["canonical_solution"])
        for stop in options["until"]:
            reply = reply.split(stop)[0]
        return reply if int(str(document["task_id"]).split("/")[-1]) % 3 < 2 else f"{reply}\nassert False"

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def evaluate(name: str, data: Path, folder: Path) -> tuple[Oracle, dict[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = [task for task in code_tasks.TASKS if task.task == name]
    folder.mkdir()
    names = write_tasks(find_tasks(data, tasks), folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model = Oracle()
    results = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    return model, results["results"][name]


def write_humaneval(data: Path) -> None:
    (data / "humaneval").mkdir()
    with gzip.open(data / "humaneval/HumanEval.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(problem) + "\n" for problem in PROBLEMS)


def write_mbpp(data: Path) -> None:
    (data / "mbpp").mkdir()
    with (data / "mbpp/mbpp.jsonl").open("w") as out:
        for number in (1, 2, 3, 4, 12, 13, 14, 600):
            tests = [f"assert plus(1) == {1 + number}", "assert plus(0) > 0", "assert True"]
            record = {"task_id": number, "text": f"Add {number}.", "code": f"def plus(n):\n    return n + {number}"}
            out.write(
                json.dumps(record | {"test_list": tests, "test_setup_code": "", "challenge_test_list": []}) + "\n"
            )


@pytest.mark.parametrize(("name", "write"), [("gemwright_humaneval", write_humaneval), ("gemwright_mbpp", write_mbpp)])
def test_tasks_score_two_of_three_problems(name: str, write: Callable[[Path], None], tmp_path: Path):
    write(tmp_path)
    model, results = evaluate(name, tmp_path, tmp_path / "tasks")
    assert results["pass@1,programs"] == pytest.approx(2 / 3)
    assert results["sample_len"] == 3
    if name == "gemwright_mbpp":
        texts = [f"Add {number}." for number in (2, 3, 4, 12)]
        places = [model.prompts[0].index(text) for text in texts]
        assert places == sorted(places)
        assert model.prompts[0].count("[DONE]") == 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("humaneval", "humaneval/humaneval"), ("humaneval_64", "humaneval/humaneval_64"), ("mbpp", "mbpp/mbpp")],
)
def test_prompts_and_stop_strings_are_those_of_lm_eval(ours: str, theirs: str):
    import lm_eval.tasks

    class Loader(yaml.SafeLoader):
        """Reads functions as their names."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))

    def read(file: Path) -> dict[str, Any]:
        fields = yaml.load(file.read_text(), Loader)
        parent = fields.pop("include", None)
        return (read(file.parent / parent) if parent else {}) | fields

    published = Path(next(iter(lm_eval.tasks.__path__)))
    found, expected = read(definitions.DEFINITIONS / f"{ours}.yaml"), read(published / f"{theirs}.yaml")
    shared = ("dataset_path", "dataset_name", "test_split", "doc_to_text", "doc_to_target", "target_delimiter")
    for field in (*shared, "output_type", "generation_kwargs", "num_fewshot", "repeats"):
        assert found.get(field) == expected.get(field), field


def test_every_task_names_functions_that_exist():
    for file in definitions.DEFINITIONS.glob("*.yaml"):
        for line in file.read_text().splitlines():
            if "!function" in line:
                module, _, name = line.split("!function")[1].strip().rpartition(".")
                assert callable(getattr(__import__(module, fromlist=[name]), name)), line
