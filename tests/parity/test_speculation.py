"""Speculation on the real 270M at its own bits: the text of plain decoding, token for token."""

from dataclasses import replace
from pathlib import Path

import pytest

import gemwright
from gemwright.generate import schedule, speculation
from gemwright.generate.speculation import Pace
from gemwright.kernels.packed import use_native

pytestmark = pytest.mark.skipif(not use_native(), reason="XLA's products of one row and of several differ in rounding")
PROMPT = "".join(
    f"def test_{name}():\n    assert convert('{name}') == '{name}'\n\n\n" for name in ("one", "two", "six")
)
LENGTH = 150


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> gemwright.Model:
    return gemwright.load(demo_gguf)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_is_that_of_plain_decoding(
    monkeypatch: pytest.MonkeyPatch, model: gemwright.Model, temperature: float
):
    options = {"max_tokens": LENGTH, "temperature": temperature, "seed": 7}
    plain = model.generate(PROMPT, **options)
    found = model.generate(PROMPT, lookup=True, **options)
    assert found.tokens == plain.tokens
    monkeypatch.setattr(Pace, "size", lambda self: schedule.VERIFIED[len(self.called) % 2])  # whatever it costs
    found = replace(model, draft=model.engine).generate(PROMPT, **options)
    assert found.tokens == plain.tokens
    assert found.accepted == found.proposed > speculation.SLACK * LENGTH / 16
