"""gemwright: the whole life of a Gemma model in one small JAX codebase.

import gemwright
model = gemwright.load("gemma-3-270m")
print(model.generate("Once upon a time").text)
"""

from typing import TYPE_CHECKING, Any

from gemwright.errors import CheckpointError, GemwrightError

if TYPE_CHECKING:
    from gemwright.api import Completion, Model, Score
    from gemwright.generate.sampling import Sampling
    from gemwright.loading import load
    from gemwright.text.chat import Message

__all__ = ["CheckpointError", "Completion", "GemwrightError", "Message", "Model", "Sampling", "Score", "load"]
__version__ = "0.1.0"

_PLACES = {
    "Completion": "gemwright.api",
    "Model": "gemwright.api",
    "Score": "gemwright.api",
    "load": "gemwright.loading",
    "Sampling": "gemwright.generate.sampling",
    "Message": "gemwright.text.chat",
}


def __getattr__(name: str) -> Any:
    # JAX takes a second to import; the command line answers --help without it.
    if name not in _PLACES:
        raise AttributeError(f"module 'gemwright' has no attribute {name!r}")
    import importlib

    from gemwright.runtime import startup

    with startup.paused():
        return getattr(importlib.import_module(_PLACES[name]), name)
