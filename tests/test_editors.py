"""The set-up of editors in the documentation, and the requests that they send."""

import json
import re
from pathlib import Path

import pytest

from tests.documents import ROOT

PAGE = (ROOT / "docs" / "editors.md").read_text()
REQUESTS = json.loads((ROOT / "tests" / "serve" / "editor_requests.json").read_text())


def block(first: str) -> str:
    """Return the indented block of the page that begins with a line."""
    lines = PAGE[PAGE.index(f"    {first}") :].splitlines()
    end = next(index for index, line in enumerate(lines) if line and not line.startswith("    "))
    return "\n".join(line[4:] for line in lines[:end])


def test_continue_configuration():
    """The required fields of config.yaml, and a model by whose name Continue knows the markers."""
    config = pytest.importorskip("yaml").safe_load(block("name: Gemma"))
    assert {"name", "version", "schema", "models"} == config.keys()
    for model in config["models"]:
        assert {"name", "provider", "model", "apiBase", "roles"} <= model.keys()
        assert model["apiBase"].endswith("/v1")
    completing = [model["model"] for model in config["models"] if "autocomplete" in model["roles"]]
    assert all("codegemma" in name for name in completing)


def test_other_configurations():
    settings = json.loads(block("{"))
    assert all(name.startswith("llama-vscode.") for name in settings)
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", PAGE)) == {"8012"}
    zed = json.loads("{" + " ".join(re.search(r"\*\*Zed\*\*: `(.*?)` in", PAGE, re.DOTALL)[1].split()) + "}")  # pyright: ignore[reportOptionalSubscript]
    (provider,) = zed["language_models"]["openai_compatible"].values()
    assert {"name", "max_tokens"} <= provider["available_models"][0].keys()


def test_requests_are_described():
    assert len({request["name"] for request in REQUESTS}) == len(REQUESTS)
    for request in REQUESTS:
        assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}:[\w./-]+( .+)?", source) for source in request["source"])
        assert (request["body"] is None) == (request["method"] == "GET")
        assert request["model"] in ("code", "chat", "vision")
        assert request["path"].split("?")[0] in PAGE or request["path"] == "/health", request["path"]
    assert Path(ROOT / "tests" / "serve" / "editor_requests.json").stat().st_size < 100_000
