"""The safetensors files of a folder: one, shards with an index, or shards without.

Source: huggingface/transformers, which writes `model.safetensors.index.json` to name the shard of every tensor.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.atomic import file_error, map_file
from gemwright.checkpoint.files.formats import list_files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Maximum size of a header or an index in bytes: the format's own limit."""
MAX_VALUES = 1 << 20
"""Maximum number of JSON values in a header. The largest Gemma has about ten thousand."""
SHARD = re.compile(r"-(\d{1,5})-of-(\d{1,5})(?=\.safetensors$)", re.ASCII | re.IGNORECASE)
"""The number of a shard and the number of shards in a name."""


def list_shards(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model in a folder.

    Raises:
        CheckpointError: There are none, some are missing, or the index is damaged.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    files = list_files(folder)
    indices = [file for file in files if file.name.endswith(".safetensors.index.json")]
    if (folder / INDEX) in indices or len(indices) == 1:
        index = folder / INDEX if (folder / INDEX) in indices else indices[0]
        return [folder / shard for shard in sorted(set(_read_index(index).values()))]
    found = [file for file in files if file.suffix.lower() == ".safetensors" and not is_adapter_file(file)]
    if not found:
        raise file_error(folder, f"holds neither {SINGLE} nor {INDEX}", "fetch or convert the model again")
    numbered = [file for file in found if SHARD.search(file.name)]
    _check_numbers(folder, numbered)
    return numbered or found


def is_adapter_file(path: Path) -> bool:
    """Return whether a safetensors file has the name of an adapter's weights."""
    return path.name.lower().startswith(("adapter_model", "adapters."))


def _check_numbers(folder: Path, numbered: list[Path]) -> None:
    """Check that numbered shards are those of one model, and complete."""
    matches = {file: match for file in numbered if (match := SHARD.search(file.name))}
    models = sorted({SHARD.sub(r"-*-of-\2", file.name) for file in matches})
    if len(models) > 1:
        raise file_error(
            folder, f"holds shards of several models ({', '.join(models[:8])})", "keep each in its own folder"
        )
    for match in matches.values():
        present, count = {int(other[1]) for other in matches.values()}, int(match[2])
        if missing := [number for number in range(1, min(count, 10**4) + 1) if number not in present]:
            raise file_error(folder, f"shard {missing[0]} of {count} is missing", "fetch the whole folder")
        return


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """Parse a JSON object whose size in memory is bounded by `MAX_HEADER` and `MAX_VALUES`.

    Raises:
        CheckpointError: It is too large, damaged or not an object.
    """
    if not text.startswith(b"{"):
        raise file_error(path, "does not hold a JSON object")
    if len(text) > MAX_HEADER or sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise file_error(path, "has a header too large for a Gemma model")
    try:
        return json.loads(text.decode(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise file_error(path, f"has a damaged JSON header ({error})") from error


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if len(counts) < len(pairs):
        raise ValueError(f"{counts.most_common(1)[0][0]!r:.80} appears twice")
    return dict(pairs)


def _read_index(index: Path) -> dict[str, str]:
    """Return the shard of each tensor, a plain file name."""
    shard_of = parse_json(index, map_file(index)[: MAX_HEADER + 1].lstrip()).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise file_error(index, "has no 'weight_map'")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard, re.ASCII):
            raise file_error(index, f"tensor {name!r:.200} is listed in {shard!r:.80}, not in a shard of this folder")
    return shard_of
