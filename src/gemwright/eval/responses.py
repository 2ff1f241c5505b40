"""Responses of a model on disk, so that an interrupted evaluation continues where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError
from gemwright.eval.store import Records

FILE = "responses.jsonl"
_MADE_WITH = "made with"


class Responses:
    """Responses by request, in a file of JSON lines that only grows.

    Args:
        folder: The folder of the file, which this process has locked.
        made_with: What the responses depend on, such as the model. Kept in the first line.

    Raises:
        GemwrightError: The file cannot be read, or its responses were made with something else.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]):
        self._records = Records(folder / FILE)
        now = json.loads(json.dumps(made_with))
        before = self.find(_MADE_WITH)
        if before is None:
            self.add({_MADE_WITH: now})
        elif changed := sorted(name for name in {*now, *before} if now.get(name) != before.get(name)):
            self.close()
            raise GemwrightError(
                f"{folder / FILE} has responses that were made with another {' and '.join(changed)}; "
                "give another folder."
            )

    def find(self, key: str) -> Any:
        """Return the response to a request, or None."""
        record = self._records.by_key.get(key)
        return None if record is None else record.get("response")

    def add(self, responses: Mapping[str, Any]) -> None:
        """Keep responses by key."""
        self._records.append(*({"key": key, "response": response} for key, response in responses.items()))

    def close(self) -> None:
        """Close the file."""
        self._records.__exit__()
