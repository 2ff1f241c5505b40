"""Policies: what a text may not contain, and the probability from which it is refused."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from gemwright.errors import GemwrightError

Mode: TypeAlias = Literal["input", "output"]
"""Which text is judged: that of a user, or the model's reply to it."""
MODES: tuple[Mode, ...] = ("input", "output")
THRESHOLD = 0.5
"""Probability of a violation from which a text is refused unless given."""
MAX_BYTES = 1 << 20
"""Maximum size of a policy file in bytes."""
_KEYS = ("name", "input", "output", "threshold")


@dataclass(frozen=True)
class Policy:
    """A policy.

    Attributes:
        name: Its name, which refusals and measurements report.
        guidelines: Its words for each kind of text that it applies to.
        threshold: Probability of a violation from which a text is refused.
    """

    name: str
    guidelines: Mapping[Mode, str]
    threshold: float = THRESHOLD


def read_policies(path: Path) -> tuple[Policy, ...]:
    """Return the policies of a TOML file, which has a table `[[policy]]` for each.

    Raises:
        GemwrightError: The file cannot be read, is not TOML, or has no policies or a wrong one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise GemwrightError(f"{path} has more than {MAX_BYTES} bytes; pass a file of policies.")
        document = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise GemwrightError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GemwrightError(f"{path} is not TOML ({error}); write a table [[policy]] for each policy.") from error
    tables: Any = document.get("policy")
    if not isinstance(tables, list) or not tables or document.keys() != {"policy"}:
        raise GemwrightError(f"{path} must have tables [[policy]] and nothing else; write one for each policy.")
    found = [_read_policy(path, number, table) for number, table in enumerate(cast(list[Any], tables), 1)]
    if len({policy.name for policy in found}) < len(found):
        raise GemwrightError(f"{path} has two policies of one name; give each its own.")
    return tuple(found)


def _read_policy(path: Path, number: int, table: Any) -> Policy:
    if not isinstance(table, dict):
        raise GemwrightError(f"Policy {number} of {path} is not a table; write it as [[policy]].")
    fields = cast(dict[str, Any], table)
    unknown = sorted(fields.keys() - set(_KEYS))
    if unknown:
        raise GemwrightError(f"Policy {number} of {path} has {unknown[0]!r:.80}; its keys are {', '.join(_KEYS)}.")
    texts = {key: fields[key] for key in ("name", *MODES) if key in fields}
    if not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise GemwrightError(f"Policy {number} of {path}: name, input and output must be texts that are not empty.")
    guidelines: dict[Mode, str] = {mode: str(texts[mode]).strip() for mode in MODES if mode in texts}
    if "name" not in texts or not guidelines:
        raise GemwrightError(f"Policy {number} of {path} needs a name, and its words as input, output or both.")
    threshold: Any = fields.get("threshold", THRESHOLD)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise GemwrightError(f"Policy {number} of {path}: threshold must be a number from 0 to 1.")
    return Policy(str(texts["name"]).strip(), guidelines, float(threshold))
