"""Rewards: functions of a prompt, a reply and its record to a number."""

import hashlib
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from gemwright.data.sources import Record
from gemwright.errors import DataError, GemwrightError

Reward: TypeAlias = Callable[[str, str, Mapping[str, Any]], float]
"""Returns the reward of a reply, from the prompt, the reply and the fields of the record."""

ANSWER = "answer"
"""Field of a record with the answer that the built-in rewards compare with."""
_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def exact(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """Return 1 for a reply that is the record's answer, but for white space at its ends, and 0 for another."""
    return float(completion.strip() == str(record[ANSWER]).strip())


def number(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """Return 1 for a reply whose last number equals that of the record's answer, and 0 for another."""
    found = last_number(completion)
    return float(found is not None and found == last_number(str(record[ANSWER])))


def last_number(text: str) -> float | None:
    """Return the last number in a text, such as -1,234.5; None if it has none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


BUILT_IN: Mapping[str, Reward] = {"exact": exact, "number": number}
"""Rewards by name."""


def open_reward(name: str | Path) -> Reward:
    """Return a built-in reward, or the function `reward` of a Python file, which is executed.

    Args:
        name: A name of `BUILT_IN`, or the path of a file that ends with `.py`.

    Raises:
        GemwrightError: There is no such reward, or the file fails or has no function `reward`.
    """
    if str(name) in BUILT_IN:
        return BUILT_IN[str(name)]
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise GemwrightError(
            f"The reward {name} is neither one of {', '.join(BUILT_IN)} nor a Python file; give one of these names, or "
            "the path of a file with a function reward(prompt, completion, record)."
        )
    spec = importlib.util.spec_from_file_location(f"reward_{digest(path)[:16]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise GemwrightError(f"{_describe(error, path)}; correct the file.") from error
    function: Any = getattr(module, "reward", None)
    if not callable(function):
        raise GemwrightError(f"{path} has no function reward(prompt, completion, record); add it.")
    return cast(Reward, function)


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a reward's file in hexadecimal, which changes with the file; the name of a built-in one."""
    return str(path) if str(path) in BUILT_IN else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def compute_rewards(
    reward: Reward, prompts: Sequence[str], completions: Sequence[str], records: Sequence[Record]
) -> list[float]:
    """Return the reward of each reply.

    Raises:
        DataError: A reward is no finite number, or the function fails; the message names the record.
    """
    return [_compute(reward, *one) for one in zip(prompts, completions, records, strict=True)]


def _compute(reward: Reward, prompt: str, completion: str, record: Record) -> float:
    try:
        value = reward(prompt, completion, dict(record.fields))
    except KeyError as error:
        raise record.place.error(
            f"the reward needs the field {error}, which the record does not have; add it."
        ) from error
    except Exception as error:
        raise record.place.error(
            f"the reward failed on its reply: {_describe(error)}; correct the function."
        ) from error
    shown = f"{value!r:.40}"
    try:
        result = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise DataError(
            f"{record.place}: the reward of its reply {completion!r:.60} is {shown}; return a finite number."
        )
    return result


def _describe(error: Exception, path: Path | None = None) -> str:
    """Return where an error happened and what it says, in a line."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    last = next((frame for frame in reversed(frames) if path is None or frame.filename == str(path)), None)
    number = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else last and last.lineno
    name = path or (Path(last.filename).name if last else "the function")
    text = " ".join(str(error).split())[:200]
    return f"{name}, line {number}: {type(error).__name__}: {text}"
