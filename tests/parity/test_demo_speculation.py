"""Speculation on the real 270M in its stored format: the text of plain decoding, token for token."""

from pathlib import Path

import numpy as np
import pytest

import gemwright
from gemwright.generate import buckets
from gemwright.generate.drafts import Lookup
from gemwright.generate.sampling import Sampling
from gemwright.generate.speculation import Pace
from gemwright.kernels.native import native_enabled

PROMPT = "".join(
    f"def test_{name}():\n    assert convert('{name}') == '{name}'\n\n\n" for name in ("one", "two", "six")
)
SAMPLINGS = [Sampling(), Sampling(temperature=0.8, top_k=64, seed=7)]
LENGTH = 150


@pytest.mark.slow
@pytest.mark.skipif(not native_enabled(), reason="XLA's products of one row and of several differ in rounding")
def test_the_text_is_that_of_plain_decoding(monkeypatch: pytest.MonkeyPatch, demo_gguf: Path):
    model = gemwright.load(demo_gguf)
    engine, prompts = model.engine, [model.encode(PROMPT)] * 2
    plain = list(engine.generate(prompts, SAMPLINGS, LENGTH))
    monkeypatch.setattr(buckets, "VERIFIED", (8,))
    monkeypatch.setattr(Pace, "size", lambda self: 8)  # whatever it costs
    steps = list(engine.generate(prompts, SAMPLINGS, LENGTH, proposer=Lookup()))
    np.testing.assert_array_equal([step.tokens for step in steps], [step.tokens for step in plain])
    assert LENGTH / 4 < sum(step.accepted.sum() for step in steps) < sum(step.proposed.sum() for step in steps)
