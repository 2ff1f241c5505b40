"""Every wrong setting gives one sentence that names it."""

from typing import Any

import pytest

from gemwright.errors import GemwrightError
from gemwright.train.recipe import Recipe

WRONG: list[tuple[str, Any]] = [
    *[(name, value) for name in ("rank", "length", "batch_size", "accumulation", "epochs") for value in (0, -1, 1.5)],
    *[(name, value) for name in ("alpha", "clip", "learning_rate") for value in (0, -1.0, float("nan"), float("inf"))],
    *[(name, value) for name in ("warmup", "cooldown") for value in (-0.1, 1.1, float("nan"), "0.1")],
    *[("ema", value) for value in (0.0, 1.0, -0.5, float("nan"))],
    *[("weight_decay", value) for value in (-0.1, float("nan"), float("inf"))],
    *[(name, "other") for name in ("method", "schedule", "optimizer", "packing", "dtype", "remat")],
    *[(name, 10**20) for name in ("rank", "length", "batch_size", "accumulation", "epochs", "steps", "seed")],
    ("steps", 0),
    ("seed", -1),
    ("seed", True),
    ("alpha", None),
    ("method", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_setting_is_named(name: str, value: Any):
    with pytest.raises(GemwrightError) as error:
        Recipe(**{name: value})
    message = str(error.value)
    assert message.startswith(f"{name} must be ")
    assert message.endswith(f", got {value!r}.")
    assert "\n" not in message


def test_settings_that_do_not_fit_each_other():
    with pytest.raises(GemwrightError, match="accumulation 3 does not divide the batch size 4"):
        Recipe(batch_size=4, accumulation=3)
    with pytest.raises(GemwrightError, match="weight_decay is an option of adamw"):
        Recipe(optimizer="adafactor", weight_decay=0.1)
    with pytest.raises(GemwrightError, match="65,536 x 65,536 tokens is too large"):
        Recipe(batch_size=1 << 16, length=1 << 16)
    with pytest.raises(GemwrightError, match="qlora computes in float32"):
        Recipe(method="qlora", dtype="bfloat16")


@pytest.mark.parametrize("name", ["float16", "fp16", "half"])
def test_float16_is_refused_with_the_reason(name: Any):
    with pytest.raises(GemwrightError, match=r"exceed its range \(65504\); use bfloat16 or float32"):
        Recipe(dtype=name)


def test_valid_settings_at_their_edges():
    Recipe(warmup=0, cooldown=1.0, weight_decay=0, seed=0, steps=1, rank=1, ema=0.999, learning_rate=None, clip=1)
    assert (Recipe().peak_learning_rate, Recipe(method="full").peak_learning_rate) == (2e-4, 1e-5)
