"""Read the prompts of a comparison from JSON lines, JSON, CSV, TSV, Parquet or text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gemwright.data.sources import Place, Record, find_files, read_records
from gemwright.errors import DataError

ID_FIELDS = ("question_id", "id", "uid")
"""Fields that may name a prompt, in order of preference."""
TEXT_FIELDS = ("prompt", "question", "instruction", "text")
"""Fields that may have the text of a prompt of one turn."""


@dataclass(frozen=True)
class Prompt:
    """What all candidates answer.

    Attributes:
        name: Its id in the file, or its number from 1.
        turns: Messages of the user; each is asked after the answer to the one before.
        category: A group for which results are also reported, if the file has one.
    """

    name: str
    turns: tuple[str, ...]
    category: str | None = None


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Return the prompts of a file, the first `limit` of them if it is given.

    A record has `turns`, a list of texts as in MT-Bench, or one text as `prompt`, `question`, `instruction` or `text`;
    optional are an id and a `category`. In a text file each line that is not empty is a prompt.

    Raises:
        DataError: The file cannot be read, a record has no prompt, two have the same id, or there are none.
    """
    prompts: dict[str, Prompt] = {}
    for record in _records(path):
        if limit is not None and len(prompts) >= limit:
            break
        prompt = _parse(record, len(prompts) + 1)
        if prompt.name in prompts:
            raise record.place.error(f"the id {prompt.name!r:.80} is that of an earlier record; give each its own.")
        prompts[prompt.name] = prompt
    if not prompts:
        raise DataError(f"{path} has no prompts; write one on each line.")
    return list(prompts.values())


def _records(path: Path) -> Iterator[Record]:
    """Yield records; a text file has one on each line."""
    is_text = path.suffix.lower() in (".txt", ".md")
    for record in read_records(find_files(path)):
        if not is_text:
            yield record
            continue
        for number, line in enumerate(str(record.fields["text"]).splitlines(), 1):
            if line.strip():
                yield Record(Place(record.place.path, number), {"prompt": line})


def _parse(record: Record, number: int) -> Prompt:
    fields = record.fields
    name = next((fields[field] for field in ID_FIELDS if isinstance(fields.get(field), str | int)), number)
    category = fields.get("category")
    turns = _turns(record)
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise record.place.error("a turn is empty or not a text; correct the record.")
        try:
            turn.encode()
        except UnicodeEncodeError:
            raise record.place.error("the text has half of a surrogate pair; correct the record.") from None
    return Prompt(str(name), tuple(cast(list[str], turns)), category if isinstance(category, str) else None)


def _turns(record: Record) -> list[Any]:
    fields: Mapping[str, Any] = record.fields
    turns = fields.get("turns")
    if isinstance(turns, list) and turns:
        return cast(list[Any], turns)
    text = next((fields[field] for field in TEXT_FIELDS if fields.get(field)), None)
    if text is None or turns is not None:
        raise record.place.error(
            f"there is no prompt; a record has a list `turns`, or one of {', '.join(TEXT_FIELDS)}."
        )
    return [text]
