"""docs/apis.md names every field of every API, with its outcome."""

import re
from pathlib import Path

import pytest

from gemwright.serve.apis import vertex
from gemwright.serve.apis.anthropic import fields as anthropic
from gemwright.serve.apis.llama_server import fields as llama_server
from gemwright.serve.apis.ollama import fields as ollama
from gemwright.serve.apis.responses import fields as responses

PAGE = (Path(__file__).parents[3] / "docs" / "apis.md").read_text()
SECTIONS = {section.partition("\n")[0]: section for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)}
STRUCTS = {
    "Ollama": (ollama.GenerateFields, ollama.ChatFields, ollama.OllamaOptions),
    "Anthropic": (anthropic.MessagesFields,),
    "OpenAI's responses": (responses.ResponseFields,),
    "llama-server": (llama_server.CompletionFields, llama_server.InfillFields),
}
WITHOUT_EFFECT = {
    "Ollama": ollama.WITHOUT_EFFECT | ollama.OPTIONS_WITHOUT_EFFECT,
    "Anthropic": anthropic.WITHOUT_EFFECT,
    "OpenAI's responses": responses.WITHOUT_EFFECT,
    "llama-server": llama_server.WITHOUT_EFFECT,
}
REFUSED = {
    "Ollama": {*ollama.REFUSED, *ollama.REFUSED_OPTIONS, *ollama.REFUSED_OPTIONS_UNLESS_1},
    "Anthropic": set(anthropic.REFUSED),
    "OpenAI's responses": set(responses.REFUSED),
    "llama-server": {
        *llama_server.REFUSED_UNLESS_0,
        *llama_server.REFUSED_UNLESS_1,
        *llama_server.REFUSED_UNLESS_NEGATIVE,
    },
    "Vertex AI": set(vertex.TGI_REFUSED),
}


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", text))


@pytest.mark.parametrize("section", STRUCTS)
def test_every_field_has_its_outcome(section: str):
    rest, _, refused = SECTIONS[section].partition("- Refused:")
    applied, _, without_effect = rest.partition("- Without effect:")
    fields = {name for struct in STRUCTS[section] for name in struct.__struct_fields__}
    assert fields - names_in(applied) == set()
    assert WITHOUT_EFFECT[section] - names_in(without_effect) == set()
    assert REFUSED[section] - names_in(refused) == set()
    assert not fields & (WITHOUT_EFFECT[section] | REFUSED[section])


def test_parameters_of_text_generation_inference():
    assert REFUSED["Vertex AI"] - names_in(SECTIONS["Vertex AI"]) == set()
