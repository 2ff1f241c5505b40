"""A description of what the responses of a model depend on."""

from collections.abc import Mapping
from typing import Any

import gemwright
from gemwright.checkpoint.adapters import find_model
from gemwright.checkpoint.digest import model_digest, weights_digest
from gemwright.checkpoint.open import open_checkpoint
from gemwright.loading.model import choose_precision
from gemwright.model.config import Config
from gemwright.variants import VARIANTS


def describe(model: str, adapters: Mapping[str, float], dtype: str | None, *, chat: bool) -> dict[str, Any]:
    """Return the model, its adapters, its precision and the form of its prompts, as values of JSON."""
    path, updates = find_model(model, adapters)
    return {
        "model": model,
        "digest": model_digest(open_checkpoint(path))[:16],
        "adapters": [
            f"{adapter.name} {weights_digest(adapter)[:16]} {weight:g}" for adapter, weight in updates.items()
        ],
        "dtype": choose_precision(dtype),
        "chat": chat,
        "gemwright": gemwright.__version__,
    }


def find_variant(model: str, config: Config) -> str:
    """Return the published name of a model, whose scores are published; or its own name."""
    names = [name for variant in VARIANTS.values() for name in variant.checkpoints]
    if model in names:
        return model
    same = [name for name, variant in VARIANTS.items() if variant.config == config]
    return same[0] if same else model
