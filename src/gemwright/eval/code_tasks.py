"""Code tasks over local files: where their records are and how they are read; `tasks/` has the definitions."""

import ast
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from gemwright.errors import DataError
from gemwright.eval.definitions import Fields, OwnTask, make_task, read_lines
from gemwright.families import FILL_IN_THE_MIDDLE as TOKENS


def split_single_line(solution: str) -> Iterator[tuple[str, str, str]]:
    """Yield what is before, in and after each line that is not blank; the newline belongs to what follows."""
    lines = solution.split("\n")
    for index in _find_code(lines):
        yield _split(lines, index, index)


def split_multi_line(solution: str) -> Iterator[tuple[str, str, str]]:
    """Yield what is before, in and after each span that begins and ends with a line that is not blank."""
    lines = solution.split("\n")
    code = _find_code(lines)
    for place, first in enumerate(code):
        for last in code[place:]:
            yield _split(lines, first, last)


def _find_code(lines: list[str]) -> list[int]:
    return [index for index, line in enumerate(lines) if line.strip()]


def _split(lines: list[str], first: int, last: int) -> tuple[str, str, str]:
    before = "".join(f"{line}\n" for line in lines[:first])
    after = "".join(f"\n{line}" for line in lines[last + 1 :])
    return before, "\n".join(lines[first : last + 1]), after


def read_infilling(split: Callable[[str], Iterator[tuple[str, str, str]]], file: Path) -> Iterator[Fields]:
    """Yield infilling problems made of HumanEval's solutions, as in Bavarian et al. (2022), arXiv:2207.14255."""
    for record in read_lines(file):
        for number, (before, middle, after) in enumerate(split(record["canonical_solution"])):
            yield {
                "task_id": f"{record['task_id']}/{number}",
                "entry_point": record["entry_point"],
                "prompt": record["prompt"] + before,
                "suffix": after,
                "canonical_solution": middle,
                "test": record["test"],
            }


def read_babelcode(file: Path) -> Iterator[Fields]:
    """Yield BabelCode's questions with a prompt: the solution up to its body, then the question as a docstring.

    Raises:
        DataError: A solution lacks its function, or is no Python.
    """
    for record in read_lines(file):
        solution, name = str(record["solution"]), record["entry_fn_name"]
        try:
            functions = [node for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef)]
            body = next(function.body[0].lineno for function in functions if function.name == name)
        except (SyntaxError, StopIteration) as error:
            raise DataError(f"{file}: the solution of {record['title']} defines no function {name}.") from error
        head = "".join(solution.splitlines(keepends=True)[: body - 1])
        text = str(record["text"]).strip().replace("\\", "\\\\").replace('"""', r"\"\"\"").replace("\n", "\n    ")
        yield {
            "task_id": record["title"],
            "prompt": f'{head}    """ {text}\n    """\n',
            "canonical_solution": "".join(solution.splitlines(keepends=True)[body - 1 :]),
            "testing_code": record["testing_code"],
        }


def split_infilling_prompt(text: str) -> tuple[str, str] | None:
    """Return the code before and after the gap of a prompt that a task wrote; None for other prompts."""
    if not (text.startswith(TOKENS.prefix) and text.endswith(TOKENS.middle)):
        return None
    before, mark, after = text[len(TOKENS.prefix) : -len(TOKENS.middle)].partition(TOKENS.suffix)
    return (before, after) if mark else None


_HUMANEVAL = "humaneval/HumanEval.jsonl.gz"
_MBPP = "mbpp/mbpp.jsonl"
TASKS: Final = (
    make_task("humaneval", _HUMANEVAL),
    make_task("humaneval_64", _HUMANEVAL),
    make_task("infilling_single_line", _HUMANEVAL, partial(read_infilling, split_single_line)),
    make_task("infilling_multi_line", _HUMANEVAL, partial(read_infilling, split_multi_line)),
    OwnTask("gemwright_mbpp", {"test": _MBPP, "prompt": _MBPP}),
    make_task("humanevalx_python", "humaneval-x/humaneval_python.jsonl.gz"),
    make_task("humanevalx_cpp", "humaneval-x/humaneval_cpp.jsonl.gz"),
    make_task("humanevalx_java", "humaneval-x/humaneval_java.jsonl.gz"),
    make_task("humanevalx_javascript", "humaneval-x/humaneval_js.jsonl.gz"),
    make_task("babelcode_python", "babelcode/human_eval_questions.jsonl", read_babelcode),
)
"""Code tasks and the files that serve them."""
