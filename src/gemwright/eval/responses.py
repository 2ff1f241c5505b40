"""Responses of a model on disk, so that an interrupted evaluation continues where it stopped."""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError

FILE = "responses.jsonl"


class Responses:
    """Responses by request, in a file of JSON lines that only grows. One process at a time writes it.

    Args:
        folder: The folder of the file; made if needed.
        made_with: What the responses depend on, such as the model. Kept in the first line.

    Raises:
        GemwrightError: The folder cannot be written, another process writes it, or its responses were made with
            something else.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]):
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise GemwrightError(f"{folder} cannot be written ({error.strerror}); give another folder.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GemwrightError(f"Another process evaluates into {folder}; wait for its end.") from error
        self._found = self._read(json.loads(json.dumps(made_with)))

    def _read(self, made_with: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the file holds, without a last line that was cut."""
        self._file.seek(0)
        lines = self._file.read().split("\n")
        whole = "".join(f"{line}\n" for line in lines[:-1])
        if lines[-1]:
            self._file.truncate(len(whole.encode()))
        try:
            records = [json.loads(line) for line in lines[:-1]]
            before, found = (records[0]["made_with"], dict(records[1:])) if records else (made_with, {})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise GemwrightError(f"{self._path} is damaged; delete it, or give another folder.") from error
        changed = sorted(name for name in {*made_with, *before} if made_with.get(name) != before.get(name))
        if changed:
            raise GemwrightError(
                f"{self._path} has responses that were made with another {' and '.join(changed)}; give another folder."
            )
        if not records:
            self._append([{"made_with": made_with}])
        return found

    def __len__(self) -> int:
        return len(self._found)

    def find(self, key: str) -> Any:
        """Return the response to a request, or None."""
        return self._found.get(key)

    def add(self, responses: Mapping[str, Any]) -> None:
        """Keep responses by key."""
        self._found |= responses
        self._append(responses.items())

    def _append(self, records: Iterable[Any]) -> None:
        self._file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        self._file.flush()

    def close(self) -> None:
        """Close the file and release its lock."""
        self._file.close()


def key_of(*request: Any) -> str:
    """Return the key of a request: a digest of its kind and arguments, which are values of JSON."""
    return hashlib.sha256(json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:32]
