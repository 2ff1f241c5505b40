"""`gemwright memorize`: its table, its files and its messages."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    records = [
        {"text": f"{n} the thing and the hat {'in a hat ' * n}", "source": f"s{n % 2}\ud800\n"} for n in range(12)
    ]
    contents = {"corpus": records, "short": [{"text": "the"}], "unknown": [{"context": "the hen"}], "empty": []}
    for name, content in contents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in content))
    (folder / "used").mkdir()
    (folder / "used" / "thesis.txt").write_text("all of it")
    (folder / "tuned").mkdir()
    (folder / "tuned" / "run.json").write_text('{"model": {}, "data": {}}')
    return {"tiny": tiny, "folder": folder}


def test_run(run: Run, places: dict[str, Path]):
    out = places["folder"] / "out"
    arguments = ("memorize", places["tiny"], places["folder"] / "corpus.jsonl", "--out", out)
    lengths = ("--prefix", 20, "--continuation", 10)
    found = run(*arguments, *lengths)
    assert found.code == 0, found.err
    header, *rows = found.out.splitlines()
    assert header.split() == ["source", "documents", "too", "short", "exact", "approximate", "with", "personal", "data"]
    assert [row.split()[0] for row in rows] == ["s0?", "s1?", "total"]
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    total = json.loads((out / "report.json").read_text())["total"]
    assert total["exact"]["documents"] == len(lines) > 4
    assert total["documents"] == 12
    for line in lines:  # no text of a document is printed
        assert line["continuation"] not in found.out + found.err
        assert line["generated"] not in found.out + found.err
    again = run(*arguments, *lengths)
    assert again.out == found.out
    for changed, name in [(("--prefix", 21), "settings and documents"), (("--seed", 1), "settings")]:
        refused = run(*arguments, *lengths, *changed)
        assert refused.code == 2
        assert f"has an audit with other {name}; use the same again or give another folder." in refused.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("{tiny} {folder}/none.jsonl --out {folder}/x", "none.jsonl does not exist or is not a file"),
        ("{tiny} {folder}/short.jsonl --out {folder}/x", "No document of the corpus has 100 tokens; use longer"),
        ("{tiny} {folder}/empty.jsonl --out {folder}/x", "No document of the corpus has 100 tokens; use longer"),
        ("{tiny} {folder}/unknown.jsonl --out {folder}/x", "the kind of record is not recognized (it has context)"),
        ("{tiny} {folder}/corpus.jsonl --out {folder}/x --prefix 5000", "exceed the model's context of 4096; use"),
        ("{tiny} {folder}/corpus.jsonl --out {folder}/x --prefix 0", "Invalid value for '--prefix'"),
        ("{tiny} {folder}/corpus.jsonl", "Missing option '--out'"),
        (
            "{tiny} {folder}/corpus.jsonl --out {folder}/used --prefix 20 --continuation 10",
            "used has files that are not of a memorization audit; give an empty or a new folder.",
        ),
        (
            "{tiny} {folder}/corpus.jsonl --out {folder}/tuned --prefix 20 --continuation 10",
            "tuned has files that are not of a memorization audit; give an empty or a new folder.",
        ),
    ],
)
def test_errors(run: Run, places: dict[str, Path], arguments: str, sentence: str):
    result = run("memorize", *arguments.format(**places).split())
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert not (places["folder"] / "x").exists()
    assert [path.name for path in (places["folder"] / "used").iterdir()] == ["thesis.txt"]
    assert (places["folder"] / "tuned" / "run.json").read_text() == '{"model": {}, "data": {}}'
