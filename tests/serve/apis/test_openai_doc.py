"""docs/openai.md names every field with its outcome."""

import re
from pathlib import Path

from gemwright.serve.apis.openai import chat, completions, replies

PAGE = (Path(__file__).parents[3] / "docs" / "openai.md").read_text()


def names(outcome: str) -> set[str]:
    items = re.findall(rf"^- {outcome}:((?:.|\n  )*)", PAGE, flags=re.MULTILINE)
    return {name for item in items for name in re.findall(r"`([\w.]+)`", item)}


def test_every_field_has_its_outcome():
    fields = {*completions.CompletionRequest.__struct_fields__, *chat.ChatRequest.__struct_fields__}
    without_effect = replies.WITHOUT_EFFECT | chat._WITHOUT_EFFECT
    refused = {*completions._REFUSED, *chat._REFUSED}
    assert fields - names("Applied") == set()
    assert names("Without effect") == without_effect
    assert names("Refused") == refused
    assert not fields & (without_effect | refused)
