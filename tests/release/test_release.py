"""`gemwright release`: what would be uploaded, and uploads to a local hub by the hub's own client."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemwright.errors import GemwrightError
from gemwright.release.publishing.prepare import Options, prepare
from gemwright.release.publishing.provenance import list_files
from gemwright.release.publishing.upload import parse_destination
from tests.cli.conftest import Run, run
from tests.release.hub import Uploads, serve
from tests.release.made import BASE, Made

__all__ = ["run"]
TOKEN = "hf_of_these_tests"


@pytest.fixture(scope="module")
def released(tuned: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("released") / "hens"
    prepare(tuned.adapter, out, Options(base=BASE, records=tuple(tuned.records)))
    return out


@pytest.fixture
def hub() -> Iterator[Uploads]:
    with serve(Uploads({}, tokens=(TOKEN,))) as hub:
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in list_files(folder)}


def start(hub: Uploads, folder: Path, home: Path, token: str = TOKEN) -> subprocess.Popen[str]:
    """Start the command line in its own process, because `huggingface_hub` reads the environment once."""
    others = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "gemwright", "release", str(folder), "--to", "hub:someone/hens"]
    return subprocess.Popen(command, env=others | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_dry_run_lists_what_is_uploaded(released: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    result = run("release", released, "--to", "hub:someone/hens", "--dry-run")
    assert result.code == 0, result.err
    files = contents(released)
    assert [line.split() for line in result.out.splitlines()] == [
        [hashlib.sha256(content).hexdigest(), f"{len(content):,}", name] for name, content in sorted(files.items())
    ]
    assert f"{len(files)} files" in result.err
    assert {"README.md", "NOTICE", "LICENSE", "GEMMA_TERMS_OF_USE.txt", "SHA256SUMS", "adapter_model.safetensors"} <= (
        files.keys()
    )


def test_upload_that_is_killed_and_run_again(released: Path, hub: Uploads, tmp_path: Path):
    files = contents(released)
    hub.held = hashlib.sha256(files["adapter_model.safetensors"]).hexdigest()
    process = start(hub, released, tmp_path)
    assert hub.holding.wait(60), process.communicate()
    process.kill()
    process.communicate()
    assert hub.commits == []
    assert hub.repos["someone/hens"].private
    hub.held, before = None, list(hub.sent)
    assert before
    process = start(hub, released, tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith(f"{hub.endpoint}/someone/hens/commit/")
    assert hub.repos["someone/hens"].files == files
    assert [sorted(paths) for paths in hub.commits] == [sorted(files)]
    assert len(hub.sent) == len(set(hub.sent))
    assert hub.validated[-1].encode() == files["README.md"]
    # Once more: nothing has changed, and nothing is sent.
    process = start(hub, released, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (len(hub.commits), len(hub.sent)) == (1, len(set(hub.sent)))


def test_refused_token_is_one_sentence(released: Path, hub: Uploads, tmp_path: Path):
    process = start(hub, released, tmp_path, token="hf_another")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.splitlines()[-1] == (
        "gemwright: someone/hens: the hub refuses this token; set HF_TOKEN to one from "
        "https://huggingface.co/settings/tokens that may write there."
    )


def test_release_with_problems_is_not_uploaded(released: Path, hub: Uploads, run: Run, tmp_path: Path):
    (released / "notes.md").write_text("Ask hen.example@example.com")
    try:
        result = run("release", released, "--to", "hub:someone/hens")
    finally:
        (released / "notes.md").unlink()
    assert result.code == 2
    assert result.err.splitlines() == [
        "gemwright: notes.md is not listed in SHA256SUMS; write the release again with `gemwright card`.",
        "gemwright: notes.md, line 1, has personal data (EMAIL); remove it, or give a page instead.",
        f"gemwright: {released} is not published because of 2 problems; correct what is listed above.",
    ]
    assert hub.requests == []


def test_kaggle_metadata(released: Path, run: Run):
    result = run("release", released, "--to", "kaggle:someone/hens/transformers/adapter", "--dry-run")
    assert result.code == 0, result.err
    try:
        model, instance = (
            json.loads((released / name).read_text())
            for name in ("model-metadata.json", "model-instance-metadata.json")
        )
        # What Kaggle's client requires (kaggle-api wiki, "Model Metadata").
        assert model | {"description": ""} == {
            "ownerSlug": "someone",
            "title": "hens",
            "slug": "hens",
            "subtitle": "",
            "isPrivate": True,
            "description": "",
            "publishTime": "",
            "provenanceSources": "provenance.json",
        }
        assert model["description"].startswith("# hens\n")
        assert (instance["instanceSlug"], instance["framework"], instance["licenseName"]) == (
            "adapter",
            "transformers",
            "Gemma",
        )
        again = run("release", released, "--to", "hub:someone/hens", "--dry-run")
        assert again.code == 0
        assert "metadata.json" not in again.out
    finally:
        (released / "model-metadata.json").unlink()
        (released / "model-instance-metadata.json").unlink()


@pytest.mark.parametrize("text", ["hens", "hub:", "hub:hens", "hub:a/b:c.gguf", "kaggle:a/b", "s3://a/b", "hub:../x"])
def test_other_destinations_are_refused(text: str):
    with pytest.raises(GemwrightError, match="is no destination"):
        parse_destination(text)


def test_command_line_of_card(tuned: Made, run: Run, tmp_path: Path):
    result = run("card", tuned.adapter, "--out", tmp_path / "hens", "--base", BASE, "--records", tuned.evaluation)
    assert (result.code, result.out) == (0, f"{tmp_path / 'hens'}\n")
    assert result.err.startswith("Not answered yet: summary, intended_use, ")
    result = run("card", tuned.adapter, "--out", tmp_path / "other", "--records", tmp_path)
    assert result.code == 2
