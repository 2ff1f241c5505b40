"""Records as JSON lines that survive a crash, for runs that continue. One process at a time writes a file."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

from gemwright.errors import GemwrightError


def make_key(*parts: Any) -> str:
    """Return a key that changes if one of its parts does: 128 bits of a SHA-256 in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Records:
    """Records of a file, each with a `key`; of several with the same key the last counts.

    A line is on the disk before `append` returns. A last line that was cut off by a crash is removed.

    Attributes:
        by_key: The records.
    """

    def __init__(self, path: Path):
        try:
            data = path.read_bytes() if path.exists() else b""
            *whole, cut = data.split(b"\n")
            parsed = (_parse(path, number, line) for number, line in enumerate(whole, 1))
            self.by_key = {str(record["key"]): record for record in parsed}
            self._file = path.open("ab")
            self._file.truncate(len(data) - len(cut))
        except OSError as error:
            raise GemwrightError(f"{path} cannot be read or written ({error.strerror}); check the folder.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write records, each with a `key`."""
        self._file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.by_key.update((record["key"], record) for record in records)


def _parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(cast(dict[str, Any], record).get("key"), str):
            return cast(dict[str, Any], record)
    except (ValueError, RecursionError):
        pass
    raise GemwrightError(f"{path}, line {number}, is not a record of this run; remove the line.")
