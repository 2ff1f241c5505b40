"""LoRA adapters on disk: PEFT folders and GGUF files. This module must not import JAX.

Sources: huggingface/peft `src/peft/utils/save_and_load.py` (0.21); ggml-org/llama.cpp `src/llama-adapter.cpp`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.files.gguf import open_gguf
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.files.safetensors import open_safetensors
from gemwright.checkpoint.files.shards import is_adapter_file
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.checkpoint.find import ADAPTER_CONFIG, adapter_base
from gemwright.checkpoint.locate import locate
from gemwright.errors import CheckpointError, GemwrightError

WEIGHTS = "adapter_model.safetensors"
"""Name of the weights in a PEFT folder."""
HUB = "https://huggingface.co/"

AdapterNames: TypeAlias = str | Path | Sequence[str | Path] | Mapping[str, float] | Mapping[Path, float]
"""One adapter, several, or several with the weight of each."""

_UNSUPPORTED = ("use_qalora", "alora_invocation_tokens", "megatron_config", "layer_replication", "target_parameters")


@dataclass(frozen=True, eq=False)
class Adapter:
    """An open adapter, whose updates are on disk until `gemwright.checkpoint.updates` reads them.

    Attributes:
        path: The PEFT folder or the GGUF file.
        format: Format of the adapter.
        base: The model that it was trained on, as it names it: a path, hub id or name; None if it does not.
        file: Its tensors.
        settings: Contents of `adapter_config.json`, or the metadata of the GGUF file.
    """

    path: Path
    format: Literal["peft", "gguf"]
    base: str | None
    file: TensorFile
    settings: Mapping[str, Any]


def is_adapter(path: Path) -> bool:
    """Return whether a path is a PEFT folder, its weights, or a GGUF file whose metadata call it an adapter."""
    return adapter_base(path) is not None


def open_adapter(path: Path) -> Adapter:
    """Open a PEFT folder with safetensors, or a GGUF file with a LoRA adapter.

    Raises:
        CheckpointError: It is missing, damaged, or an adapter of another kind.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give an adapter: a PEFT folder or a GGUF file.")
    if path.is_dir():
        return _open_folder(path)
    return _open_folder(path.parent) if is_adapter_file(path) else _open_file(path)


def find_model(model: str | Path, adapters: AdapterNames = ()) -> tuple[Path, dict[Path, float]]:
    """Return the path of a model, and the path and weight of each adapter; download them if necessary.

    Args:
        model: A path, a name from `gemwright models`, a hub id, or an adapter, whose base model is then used.
        adapters: Further adapters.

    Raises:
        GemwrightError: A model or adapter is not found, or an adapter does not name its base model.
    """
    named = adapters if isinstance(adapters, Mapping) else dict.fromkeys(_listed(adapters), 1.0)
    found = {locate(str(name)): _check_weight(name, weight) for name, weight in named.items()}
    path = locate(str(model))
    if not is_adapter(path):
        return path, found
    base = open_adapter(path).base
    if base is None:
        raise GemwrightError(
            f"{path} is an adapter that does not name its base model; give the model (--model) and this as --adapter."
        )
    try:
        located = locate(base)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is an adapter for {base}, which is not found: {error}") from error
    if is_adapter(located):
        raise GemwrightError(f"{path} is an adapter for another adapter, {base}; merge that one first.")
    return located, {path: 1.0} | found


def _listed(adapters: AdapterNames) -> Sequence[str | Path]:
    return [adapters] if isinstance(adapters, str | Path) else list(adapters)


def _check_weight(name: str | Path, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise GemwrightError(f"The weight of adapter {name} is {weight!r:.40}; give a finite number, such as 0.5.")
    return float(weight)


def _open_folder(folder: Path) -> Adapter:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise file_error(
            folder, f"has no {ADAPTER_CONFIG}, so it is not an adapter", "give a PEFT folder or a GGUF file"
        )
    settings = read_json(folder / ADAPTER_CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise file_error(folder, f"is an adapter of type {kind!r:.40}, which is not supported", "use a LoRA adapter")
    if settings.get("bias", "none") != "none" or settings.get("lora_bias"):
        raise file_error(folder, "has trained biases, which are not supported", "train it with bias='none'")
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise file_error(folder, f"uses {key}, which is not supported", "merge it with PEFT first")
    ConfigReader(settings, str(folder / ADAPTER_CONFIG)).real("lora_alpha", 8)
    if not (folder / WEIGHTS).is_file():
        raise file_error(folder, f"has no {WEIGHTS}", "save the adapter as safetensors; other files are not read")
    base = settings.get("base_model_name_or_path")
    base = base if isinstance(base, str) and base else None
    return Adapter(folder, "peft", base, open_safetensors(folder / WEIGHTS), settings)


def _open_file(path: Path) -> Adapter:
    file = open_gguf(path)
    metadata = file.metadata
    if file.text("general.type") != "adapter":
        raise file_error(path, "is no adapter", "use it as the model")
    if file.text("adapter.type") != "lora":
        kind = file.text("adapter.type")
        raise file_error(path, f"is an adapter of type {kind!r:.40}, which is not supported", "use a LoRA adapter")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise file_error(path, "has no valid adapter.lora.alpha")
    url = file.text("general.base_model.0.repo_url") or ""
    base = url.removeprefix(HUB) if url.startswith(HUB) else None
    return Adapter(path, "gguf", base, file, metadata)
