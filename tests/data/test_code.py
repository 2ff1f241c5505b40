"""Source code as training data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemwright.data import Dataset, batches
from gemwright.data.code import open_code
from gemwright.errors import DataError, GemwrightError
from gemwright.text.tokenizer import Tokenizer
from tests.tiny.vocabulary import MARKERS, make_vocabulary

TOKENIZER = Tokenizer(make_vocabulary())
PREFIX, MIDDLE, SUFFIX, SEPARATOR = MARKERS


def make_library(folder: Path, count: int = 12) -> dict[str, str]:
    """Write a small repository, and files that are none of its source code."""
    files = {f"m{n}.py": "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(n + 1)) for n in range(count)}
    files |= {f"sub/u{n}.py": f"import m{n}\nvalue = {n}\n" for n in range(3)}
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / ".git").mkdir()
    (folder / ".git" / "hook.py").write_text("hidden")
    (folder / "empty.py").write_text(" \n")
    (folder / "latin.py").write_bytes(b"# \xe9\n")
    (folder / "data.bin").write_bytes(b"\xff")
    return files


def read(path: Path, **options: Any) -> Dataset:
    settings = {"max_length": 96, "infill": 0.0, "repository": True, "seed": 0}
    return open_code([path], TOKENIZER, **settings | options)


def texts(dataset: Dataset) -> list[str]:
    """Return the parts of files in all documents, in order."""
    found: list[str] = []
    for document in dataset.documents:
        assert document.ids[0] == TOKENIZER.bos_id
        assert document.ids[-1] == TOKENIZER.eos_id
        parts = np.split(document.ids[1:-1], np.flatnonzero(document.ids[1:-1] == SEPARATOR))
        found += [TOKENIZER.decode(part.tolist()) for part in parts]
    return found


@pytest.mark.parametrize("repository", [True, False])
def test_the_parts_are_the_files(tmp_path: Path, repository: bool):
    files, found = make_library(tmp_path), dict[str, str]()
    dataset = read(tmp_path, repository=repository)
    for part in texts(dataset):
        path, _, text = part.partition("\n")
        found[path] = found.get(path, "") + text
    assert found == files
    assert max(len(document.ids) for document in dataset.documents) <= 97
    assert all(document.learned[1:].all() and not document.learned[0] for document in dataset.documents)
    assert "left out: 2 files" in dataset.notes[0]
    assert dataset.statistics.records == len(dataset.documents)
    order = list(found)
    assert order.index("m2.py") < order.index("sub/u2.py")


def test_reordered_parts_are_the_files(tmp_path: Path):
    files, found = make_library(tmp_path), dict[str, str]()
    dataset = read(tmp_path, infill=1.0, repository=False)
    for document in dataset.documents:
        ids = document.ids[1:-1].tolist()
        prefix, suffix, middle = (ids.index(one) for one in (PREFIX, SUFFIX, MIDDLE))
        path = TOKENIZER.decode(ids[:prefix]).removesuffix("\n")
        before, after, rest = (
            TOKENIZER.decode(part) for part in (ids[prefix:suffix], ids[suffix:middle], ids[middle:])
        )
        found[path] = found.get(path, "") + (rest + after if suffix == prefix + 1 else before + rest + after)
    assert found == files
    assert dataset.notes[0].startswith("Fill-in-the-middle: 100.0% of ")


def test_places_name_the_line_of_a_part(tmp_path: Path):
    make_library(tmp_path)
    dataset = read(tmp_path, repository=False)
    places = [str(dataset.place(index)) for index in dataset.documents.records.tolist()]
    assert f"{tmp_path / 'm0.py'}, line 1" in places
    line = next(int(place.rsplit(" ", 1)[1]) for place in places if "m11.py" in place and not place.endswith("line 1"))
    assert (
        texts(dataset)[places.index(f"{tmp_path / 'm11.py'}, line {line}")].split("\n")[1]
        == ((tmp_path / "m11.py").read_text().split("\n")[line - 1])
    )


def test_records_are_files_of_repositories(tmp_path: Path):
    records = [
        {"repository": "x", "path": "b.py", "text": "import a\n"},
        {"repo_name": "y", "path": "b.py", "content": "y = 1\n"},
        {"repository": "x", "path": "a.py", "text": "x = 1\n"},
        {"text": "no path\n"},
    ]
    file = tmp_path / "files.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert texts(read(file)) == ["a.py\nx = 1\n", "b.py\nimport a\n", "b.py\ny = 1\n", "no path\n"]
    assert read(file).digest != ""


def test_the_same_seed_gives_the_same_data(tmp_path: Path):
    make_library(tmp_path)
    first, again, other = (read(tmp_path, infill=0.8, seed=seed).fingerprint for seed in (3, 3, 4))
    assert first == again != other


def test_documents_are_packed(tmp_path: Path):
    make_library(tmp_path)
    made = batches(read(tmp_path, infill=0.8), batch_size=2, length=96)
    assert sum(int(np.sum(batch.segments > 0)) for batch in made) > 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "has no source code"),
        (lambda folder: folder / "a.bin", "neither source code nor JSON lines"),
        (lambda folder: folder / "a.py", "cannot be read"),
        (lambda folder: folder / "a.jsonl", "cannot be read"),
    ],
)
def test_refusals(tmp_path: Path, make: Any, message: str):
    with pytest.raises(DataError, match=message):
        read(make(tmp_path))


@pytest.mark.parametrize(
    "record", ['{"text": 1}', '{"path": "a"}', '{"text": "a", "path": 2}', '{"text": "\\ud800"}', "["]
)
def test_bad_records_are_named(tmp_path: Path, record: str):
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "a"}}\n{record}\n')
    with pytest.raises(GemwrightError, match=r"a\.jsonl, line 2: .*correct the (record|file)"):
        read(file)
