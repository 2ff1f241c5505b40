"""Folders for Ollama: the model, and the template beside the family's chat template."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest

from gemwright.errors import GemwrightError
from gemwright.release.ollama import CHAT, export_ollama
from gemwright.release.targets import ExportOptions
from gemwright.text.chat import GEMMA3
from tests.release.models import write_small_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_small_gguf(tmp_path_factory.mktemp("ollama") / "small.gguf", chat_template=GEMMA3.template)
    export_ollama(source, source.parent / "folder", ExportOptions(), lambda line: None)
    return source.parent / "folder"


def test_a_gguf_file_is_copied_and_described(folder: Path) -> None:
    assert (folder / "model.gguf").read_bytes() == (folder.parent / "small.gguf").read_bytes()
    modelfile = (folder / "Modelfile").read_text()
    assert modelfile.startswith('FROM ./model.gguf\nTEMPLATE """{{- $begin := "" }}')
    lines = {line for line in modelfile.splitlines() if line.startswith(("PARAMETER", "LICENSE"))}
    assert lines == {
        'PARAMETER stop "<end_of_turn>"',
        "PARAMETER temperature 1",
        "PARAMETER top_k 64",
        "PARAMETER top_p 0.95",
        "PARAMETER min_p 0",
        "PARAMETER repeat_penalty 1",
        'LICENSE """Gemma Terms of Use: https://ai.google.dev/gemma/terms"""',
    }


def test_a_base_model_continues_text_and_other_templates_are_refused(tmp_path: Path) -> None:
    base = write_small_gguf(tmp_path / "base.gguf")
    export_ollama(base, tmp_path / "base", ExportOptions("int8", verify=False), lambda line: None)
    assert 'TEMPLATE """{{ .Prompt }}"""\nPARAMETER temperature' in (tmp_path / "base" / "Modelfile").read_text()
    other = write_small_gguf(tmp_path / "other.gguf", chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(GemwrightError, match="has a chat template that is not Gemma 3's"):
        export_ollama(other, tmp_path / "other", ExportOptions(), lambda line: None)
    assert not (tmp_path / "other").exists()


PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var data struct {
		System   string
		Messages []*message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&data); err != nil {
		panic(err)
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	if err := template.Must(template.New("").Parse(string(text))).Execute(os.Stdout, data); err != nil {
		panic(err)
	}
}
"""
"""What Ollama does: it executes the template with the joined system messages and all messages."""


@pytest.mark.peer
def test_the_template_writes_what_the_chat_template_writes(tmp_path: Path) -> None:
    """Go itself executes it. Ollama's tokenizer adds BOS, and an answer at the end is left open to be continued."""
    go = os.environ.get("GO") or shutil.which("go")
    if go is None:
        pytest.skip("needs go (Debian's golang-go)")
    (tmp_path / "main.go").write_text(PROGRAM)
    (tmp_path / "template").write_text(CHAT)
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    subprocess.run([go, "build", "-o", "render", "main.go"], cwd=tmp_path, env=environment, check=True)
    system = {"role": "system", "content": "Be brief."}
    turns = [
        {"role": "user", "content": "Name a gem."},
        {"role": "assistant", "content": "Ruby."},
        {"role": "user", "content": "And {{ another }}?"},
    ]

    def execute(system: str, messages: list[dict[str, str]]) -> str:
        done = subprocess.run(
            [tmp_path / "render", "template"],
            cwd=tmp_path,
            input=json.dumps({"System": system, "Messages": messages}),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    chat = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(GEMMA3.template)
    for messages in (turns[:1], turns, [system, *turns[:1]], [system, *turns]):
        expected = chat.render(messages=messages, bos_token="", add_generation_prompt=True)
        assert execute("Be brief." if messages[0] is system else "", messages) == expected
    assert execute("", turns[:2]) == ("<start_of_turn>user\nName a gem.<end_of_turn>\n<start_of_turn>model\nRuby.")
