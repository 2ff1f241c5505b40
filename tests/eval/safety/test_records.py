"""Files of other people: every form is read by name, and a bad one gives a sentence."""

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gemwright.errors import DataError
from gemwright.eval.safety.records import list_sources, match, read_records

ROWS = [{"Prompt": "a hen", "n": "1"}, {"Prompt": "a cat", "n": "2"}]


def read_texts(folder: Path) -> list[str]:
    return [record.text("prompt") for source in list_sources(folder) for record in read_records(source)]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "tsv", "parquet", "jsonl.gz", "zip", "bom.csv", "list.jsonl"])
def test_every_form_has_the_same_records(tmp_path: Path, form: str):
    file = tmp_path / f"set.{form}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = "Prompt,n\na hen,1\na cat,2\n"
    match form:
        case "json" | "list.jsonl":
            file.write_text(json.dumps(ROWS))
        case "jsonl":
            file.write_text(lines)
        case "csv" | "bom.csv":
            file.write_text(table, encoding="utf-8-sig" if form == "bom.csv" else "utf-8")
        case "tsv":
            file.write_text(table.replace(",", "\t"))
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
        case "jsonl.gz":
            file.write_bytes(gzip.compress(lines.encode()))
        case _:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("inner/set.jsonl", lines)
                archive.writestr("../LICENSE.txt", "no data")
    assert read_texts(tmp_path) == ["a hen", "a cat"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"[" * 100_000),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"'),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.jsonl.gz", b"no gzip"),
        ("a.parquet", b"no parquet"),
        ("a.zip", b"no zip"),
    ],
)
def test_a_damaged_file_gives_a_sentence(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"a\.\w+"):
        read_texts(tmp_path)


def test_a_missing_field_is_named_and_no_text_is_quoted(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"other": "private words"}\n')
    (record,) = read_records(list_sources(tmp_path)[0])
    with pytest.raises(DataError, match=r"a\.jsonl, record 1 needs the field prompt or goal; it has other\.") as error:
        record.text("prompt", "goal")
    assert "private" not in str(error.value)


def test_patterns(tmp_path: Path):
    for name in ("one/ORIGIN.json", "one/Set_All.csv", "one/set_test.csv", "two/set.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n")
    sources = list_sources(tmp_path)
    assert [source.name for source in match(sources, ("one/*all*", "one/*"))] == ["one/Set_All.csv"]
    assert [source.name for source in match(sources, ("none/*", "one/*"))] == ["one/Set_All.csv", "one/set_test.csv"]
    assert [source.name for source in match(sources, ("T-W_O/*",))] == ["two/set.csv"]
    assert [source.name for source in match(sources, ("set/*", "none/*"))] == [
        "one/Set_All.csv", "one/set_test.csv", "two/set.csv",
    ]  # fmt: skip
    assert match(sources, ("none/*",)) == []


def test_a_missing_folder(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        list_sources(tmp_path / "none")
