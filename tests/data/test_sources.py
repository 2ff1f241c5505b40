"""Files of every format give the same records, and damaged ones one sentence."""

import contextlib
import csv
import gzip
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.data.sources import MAX_RECORD_BYTES, digest, find_files, read_records
from gemwright.errors import DataError

RECORDS = [
    {"question": 'Say "a, b"\n and é', "answer": "[x]"},
    {"question": "\ttab {", "answer": 'back\\slash "'},
    {"question": "漢字", "answer": "}"},
]


def write_records(folder: Path, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
    match suffix:
        case ".jsonl":
            path.write_text(lines)
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case ".json":
            path.write_text(json.dumps(RECORDS, indent=2))
        case ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        case _:
            with path.open("w", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
                writer.writerows([["question", "answer"], *(list(record.values()) for record in RECORDS)])
    return path


@pytest.mark.parametrize(
    ("suffix", "places"),
    [
        (".jsonl", ["line 1", "line 2", "line 3"]),
        (".jsonl.gz", ["line 1", "line 2", "line 3"]),
        (".json", ["item 1", "item 2", "item 3"]),
        (".csv", ["line 2", "line 4", "line 5"]),
        (".tsv", ["line 2", "line 4", "line 5"]),
        (".parquet", ["row 1", "row 2", "row 3"]),
    ],
)
def test_formats_give_the_same_records(suffix: str, places: list[str], tmp_path: Path) -> None:
    path = write_records(tmp_path, suffix)
    records = list(read_records([path]))
    assert [dict(record.fields) for record in records] == RECORDS
    assert [str(record.place) for record in records] == [f"{path}, {place}" for place in places]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow; run: pip install pyarrow"):
        list(read_records([tmp_path / "a.parquet"]))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_one_record_at_a_time_is_in_memory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    record, start, between, end = {
        ".jsonl": ('{"text": "' + "x" * 1000 + '"}', "", "\n", "\n"),
        ".json": ('{"text": "' + "x" * 1000 + '"}', "[", ",", "]"),
        ".csv": ("x" * 1000, "text\n", "\n", "\n"),
    }[suffix]
    path.write_text(start + between.join([record] * 5000) + end)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records([path])) == 5000
        assert tracemalloc.get_traced_memory()[1] < 500_000  # of a file of 5 MB
    finally:
        tracemalloc.stop()


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert [record.fields for record in read_records([tmp_path / "a.txt"])] == [{"text": "one\r\ntwo\n"}]


def test_a_folder_gives_its_files_of_records(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "README.md", ".hidden.jsonl", "LICENSE"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "ORIGIN.json").write_text("{}")
    assert [file.name for file in find_files(tmp_path)] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("one")
    (tmp_path / "texts" / "README.md").write_text("not data")
    assert [file.name for file in find_files(tmp_path / "texts")] == ["one.txt"]


def test_a_folder_with_test_data_is_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"text": "the"}\n')
    with pytest.raises(DataError, match="training and test files"):
        find_files(tmp_path)
    assert len(find_files(tmp_path / "train.jsonl")) == 1


@pytest.mark.parametrize(("name", "problem"), [("no.jsonl", "does not exist"), ("x.bin", "format that is not supp")])
def test_other_paths_are_refused(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(DataError, match=problem):
        find_files(tmp_path / name)


def test_the_digest_follows_the_contents(tmp_path: Path) -> None:
    path = write_records(tmp_path, ".jsonl")
    before = digest([path])
    assert digest([path]) == before
    path.write_bytes(path.read_bytes().replace(b"[x]", b"[y]"))
    assert digest([path]) != before


MALFORMED = {
    r"this is not UTF-8 \(byte 11\)": b'{"text": "\xff"}',
    "this is not valid JSON .*a record is one line": b'{"text": NaNN}',
    "a number has thousands of digits": b'{"text": ' + b"9" * 5000 + b"}",
    "a record .* not null": b"null",
    "a record .* not a list": b"[1]",
}


@pytest.mark.parametrize("problem", MALFORMED)
def test_a_malformed_line_is_named(problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "the"}\n\n' + MALFORMED[problem] + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3: {problem}"):
        list(read_records([tmp_path / "a.jsonl"]))


def test_a_huge_line_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "the"}\n')
        file.truncate(MAX_RECORD_BYTES * 40)  # a sparse file
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the line has more than"):
        list(read_records([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1}, {"b": }]', "item 2: this is not valid JSON"),
        ('[{"a": 1}, 3]', "item 2: a record is a JSON object"),
        ('[{"a": 1},]', "item 2: this is not valid JSON"),
        ('[{"a": 1}', "the list does not end"),
        ('[{"a": 1}] x', "the list does not end"),
        ('[{"a": "b]', "the list does not end"),
        ("[" * 100_000, "levels"),
        ('["' + '\\"' * 100_000, "the list does not end"),
    ],
)
def test_a_malformed_list_is_named(text: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=place):
        list(read_records([tmp_path / "a.json"]))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("question,answer\na,b\nc\n", "line 3: the row has 1 columns for 2 names"),
        ('question,answer\na,"b\n', "line 2: this is not a valid row"),
        ('question,answer\na,"' + f"{'b' * 1000}\n" * 17_000, "line 2: this is not a valid row"),
        ("question,question\na,b\n", "line 1: two columns have the same name"),
    ],
)
def test_a_malformed_row_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=problem):
        list(read_records([tmp_path / "a.csv"]))


def test_a_column_may_hold_long_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text\n{'b' * 200_000}\n")
    [record] = read_records([tmp_path / "a.csv"])
    assert len(record.fields["text"]) == 200_000


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".txt"])
@settings(deadline=None, max_examples=int(os.environ.get("FUZZ", "60")))
@given(data=st.data())
def test_damaged_files_raise_one_error(suffix: str, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_records(tmp_path_factory.mktemp("fuzz"), suffix if suffix != ".txt" else ".jsonl")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 20)))
        content[start:stop] = data.draw(st.binary(max_size=8) | st.sampled_from([b"[", b"}", b'"', b"\\", b"\n"]))
    path = path.with_name(f"data{suffix}")
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert all(record.place.path == path for record in read_records([path]))
