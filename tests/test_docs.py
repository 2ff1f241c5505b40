"""Run every snippet of the README and the documentation. Walkthroughs are run by test_walkthroughs.py.

Published models other than the demo weights are replaced by tiny folders of the same name in the working folder.
Python blocks use the demo weights.
"""

import io
import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from gemwright.checkpoint.convert_adapter import convert_adapter
from gemwright.checkpoint.open import open_checkpoint
from gemwright.cli import main
from gemwright.cli.app import app
from gemwright.generate.watermark import create_watermark
from tests.documents import PAGES, ROOT, read_blocks
from tests.tiny.adapter import write_tiny_adapter
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model

pytestmark = pytest.mark.usefixtures("quick_compilation")
TINY_GGUF = ("gemma-3-1b-it", "gemma-3-12b-it", "codegemma-2b", "gemma-2-2b")
TINY_VISION = {"paligemma2-3b-mix-224": "paligemma2", "gemma-3-4b-it": "gemma3"}
PYTHON = [page for page in PAGES if page.name != "extending.md" and "```python" in page.read_text()]
LINES = [
    (page.name, line.removeprefix("$ "))
    for page in PAGES
    for block in read_blocks(page)
    if block.language == "console"
    for line in block.text.splitlines()
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models under published names, and with the files that the pages name."""
    folder = tmp_path_factory.mktemp("models")
    for name in TINY_GGUF:
        (folder / name).mkdir()
        write_tiny_gguf(folder / name / "model.gguf", chat_template="{{ messages }}")
    for name, kind in TINY_VISION.items():
        write_model(folder / name, kind)
    config = open_checkpoint(write_tiny_gguf(folder / "model.gguf")).config
    shutil.copy(folder / "model.gguf", folder / "copy.gguf")
    (folder / "mine").mkdir()
    for seed, name in enumerate(("my-adapter", "style", "facts", "mine/adapter")):
        write_tiny_adapter(folder / name, config, "gemma-3-270m", seed)
    convert_adapter(folder / "style", folder / "downloaded.gguf", "gguf", str(folder / "model.gguf"))
    for name in ("photo.jpg", "one.jpg", "two.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(folder / name)
    for name in ("essay.txt", "report.txt"):
        (folder / name).write_text("the hen and the thing\n")
    (folder / "train.jsonl").write_text('{"text": "the hen and the thing"}\n' * 4)
    (folder / "corpus.jsonl").write_text(f'{{"text": "{"the hen and the thing " * 40}"}}\n' * 4)
    create_watermark(folder / "keys.json")
    (folder / "data").mkdir()
    item = {"goal": "the hen", "sol1": " and the thing", "sol2": " and the other", "label": 0}
    (folder / "data" / "piqa.jsonl").write_text(f"{json.dumps(item)}\n" * 2)
    return folder


@pytest.fixture
def workspace(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with links to the tiny models."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
@pytest.mark.usefixtures("workspace")
def test_python(page: Path, demo_gguf: Path):
    namespace: dict[str, object] = {}
    for block in read_blocks(page):
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), namespace)


def run_gemwright(words: list[str], stdin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command line and require success."""
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, words


def check_make(words: list[str]) -> None:
    """Require that the target exists."""
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_docker(words: list[str]) -> None:
    """Require a Dockerfile, and that what follows the image's name is a command of gemwright."""
    assert (ROOT / "Dockerfile").exists()
    if words[1] == "run":
        assert words[words.index("gemwright") + 1] in {
            command.name or command.callback.__name__ for command in app.registered_commands
        }


def check_pip(words: list[str]) -> None:
    """Require that local packages exist; `test_links_and_extras` checks extras."""
    assert words[1] in ("install", "uninstall")
    assert all((ROOT / word.partition("[")[0]).exists() for word in words[2:] if word.startswith("."))


CHECKED_ONLY: dict[str, Callable[[list[str]], None]] = {"make": check_make, "docker": check_docker, "pip": check_pip}
"""Programs that are not run here, with the check of their arguments."""


@pytest.mark.parametrize(("page", "line"), LINES, ids=[line for _, line in LINES])
def test_console(page: str, line: str, models: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch):
    words, stdin = shlex.split(line, comments=True), b"the hen\n"
    if "<" in words:
        index = words.index("<")
        stdin, words = Path(words[index + 1]).read_bytes(), words[:index]
    if words[0] in CHECKED_ONLY:
        CHECKED_ONLY[words[0]](words)
        return
    assert words[0] == "gemwright"
    (workspace / "gemma-3-270m").symlink_to(models / "gemma-3-1b-it")  # the default model
    if "folder" in words and words[1] == "generate":
        run_gemwright(["gemwright", "quantize", "model.gguf", "folder"], b"", monkeypatch)
    if words[1] in ("generate", "chat", "infill", "see"):
        words += ["--max-tokens", "8"]  # the last value counts
    if words[1] in ("serve", "compare"):
        words += ["--help"]  # they would wait for requests; tests/serve and tests/eval/compare start them
    if words[1] == "eval":
        words += ["--tasks", "piqa"]
    if words[1] == "tune":
        (workspace / "mine").unlink()
        words += ["--length", "32", "--batch-size", "2", "--steps", "1"]
    run_gemwright(words, stdin, monkeypatch)


def test_links_and_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for named in re.findall(r"(?:gemwright|\.)\[([a-z,]+)\]", text):
            assert set(named.split(",")) <= extras.keys(), f"{page.name}: {named}"


def test_every_block_is_known():
    for page in PAGES:
        languages = {block.language for block in read_blocks(page)}
        assert languages <= {"python", "console"} | ({"diff"} if page.name == "extending.md" else set()), page.name


def test_reference_of_the_command_line_is_complete():
    """If an option is missing or has another help: python docs/cli.py."""
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == runpy.run_path(str(ROOT / "docs" / "cli.py"))["page"]()
    for name, command in get_command(app).commands.items():
        section = page.partition(f"## `gemwright {name} ")[2].partition("\n## ")[0]
        for option in (option for parameter in command.params for option in parameter.opts if option[0] == "-"):
            assert re.search(rf"{re.escape(option)}\b", section), f"{name} {option}"


def test_table_of_models_is_the_forecast():
    """If it is not: python docs/which_model.py."""
    script = runpy.run_path(str(ROOT / "docs" / "which_model.py"))
    assert script["table"]() in script["PAGE"].read_text()


def test_table_of_tuning_is_computed():
    """If it is not: python docs/tune_memory.py."""
    script = runpy.run_path(str(ROOT / "docs" / "tune_memory.py"))
    assert script["table"]() in script["PAGE"].read_text()


def test_every_page_is_linked_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in PAGES if page.parent.name == "docs" and f"(docs/{page.name})" not in readme]
