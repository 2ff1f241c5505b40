"""JSON files of settings."""

import json
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.files.formats import refuse_pointer

MAX_JSON_BYTES = 64_000_000
"""Maximum size of a JSON file in bytes. The largest, a tokenizer, has half of it."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: The file is missing, larger than `MAX_JSON_BYTES`, not JSON or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise file_error(path, f"is larger than {MAX_JSON_BYTES:,} bytes", "fetch it again")
        content = path.read_bytes()
    except FileNotFoundError:
        raise file_error(path, "is missing", "fetch the whole folder") from None
    except OSError as error:
        raise file_error(path, f"cannot be read ({error.strerror})", "check the path") from error
    refuse_pointer(path, content)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise file_error(path, f"cannot be read as JSON ({error})", "fetch it again") from error
    if not isinstance(data, dict):
        raise file_error(path, "does not hold a JSON object", "fetch it again")
    return data
