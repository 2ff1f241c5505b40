"""Convert a LoRA adapter from a PEFT folder to GGUF, or back.

Sources: huggingface/peft `src/peft/tuners/lora/config.py` (0.21); ggml-org/llama.cpp `convert_lora_to_gguf.py`.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.adapters import HUB, WEIGHTS, Adapter, find_model, open_adapter
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.files.atomic import create_folder, file_error
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.files.safetensors import SINGLE, SafetensorsTensor, write_shards
from gemwright.checkpoint.find import ADAPTER_CONFIG
from gemwright.checkpoint.hub import is_repo_id
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.updates import LowRank, Updates, map_modules, read_updates
from gemwright.model.config import Config


def convert_adapter(source: Path, target: Path, to: Literal["huggingface", "gguf"], base: str | None = None) -> None:
    """Write an adapter in another format.

    Args:
        source: A PEFT folder or a GGUF file.
        target: The PEFT folder or GGUF file to make. It must not exist.
        to: The format of the target: a PEFT folder is Hugging Face's.
        base: The base model; by default the one that the adapter names.

    Raises:
        GemwrightError: The source or its base model cannot be read, the target cannot be written, or GGUF cannot
            express the adapter.
    """
    adapter = open_adapter(source)
    path = find_model(base or source)[0]
    config = open_checkpoint(path).config
    updates = read_updates(adapter, config)
    if to == "gguf":
        _write_gguf(target, adapter, updates, config, base or adapter.base)
    else:
        write_peft(target, updates, config, base or adapter.base)


def _modules(adapter_format: str, config: Config) -> dict[str, str]:
    """Return the module of each of our weights in adapters of a format, by path."""
    return {path: module for module, (path, _) in map_modules(adapter_format, config).items()}


def _write_gguf(target: Path, adapter: Adapter, updates: Updates, config: Config, base: str | None) -> None:
    modules = _modules("gguf", config)
    unknown = sorted({*updates.replaced, *(updates.low_rank.keys() - modules.keys())})
    unknown += [path for path, update in updates.low_rank.items() if update.magnitude is not None]
    if unknown:
        raise file_error(
            adapter.path, f"updates {unknown[0]} in a way that GGUF adapters cannot express", "merge it into its model"
        )
    alphas = {update.scale * len(update.a) for update in updates.low_rank.values()}
    alpha = alphas.pop() if len(alphas) == 1 else 0.0  # with an alpha of 0, llama.cpp does not scale
    tensors: list[GgufTensor] = []
    for path, update in updates.low_rank.items():
        a, b = update.a, update.b if alpha else update.b * np.float32(update.scale)
        a, b = (b, np.ascontiguousarray(a.T)) if path == "embed" else (a, b)
        for part, values in (("a", a), ("b", b)):
            name = f"{modules[path]}.weight.lora_{part}"
            tensors.append(GgufTensor(name, values.shape, "F32", [np.ascontiguousarray(values)]))
    metadata: dict[str, Any] = {
        "general.architecture": to_gguf(config)["general.architecture"],
        "general.type": "adapter",
        "general.name": target.stem,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    if base is not None and is_repo_id(base):
        metadata |= {"general.base_model.count": 1, "general.base_model.0.name": base.partition("/")[2]}
        metadata |= {"general.base_model.0.repo_url": HUB + base}
    write_gguf(target, metadata, tensors)


def write_peft(target: Path, updates: Updates, config: Config, base: str | None) -> None:
    """Write updates as a PEFT folder, completely or not at all.

    Args:
        target: The folder to make.
        updates: The updates.
        config: The model they are for.
        base: The name or path of the model.

    Raises:
        CheckpointError: The folder exists or cannot be written.
    """
    modules = _modules("peft", config)
    prefix = "model.language_model." if config.vision else "model."  # the names of transformers 5
    names = {path: modules[path].replace("model.", prefix, 1) for path in updates.low_rank}
    arrays: dict[str, NDArray[np.float32]] = {}
    for path, update in updates.low_rank.items():
        arrays |= {f"base_model.model.{names[path]}.{part}": values for part, values in _parts(path, update).items()}
    arrays |= {f"base_model.model.{modules[path]}.weight": values for path, values in updates.replaced.items()}
    tensors = [
        SafetensorsTensor(name, values.shape, np.dtype(np.float32), lambda values=values: np.ascontiguousarray(values))
        for name, values in arrays.items()
    ]
    settings = _settings(names, updates.low_rank, base)
    with create_folder(target, sum(tensor.nbytes for tensor in tensors)) as temporary:
        write_shards(temporary, tensors, sys.maxsize)
        (temporary / SINGLE).rename(temporary / WEIGHTS)
        (temporary / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _parts(path: str, update: LowRank) -> dict[str, NDArray[np.float32]]:
    if path == "embed":
        return {"lora_embedding_A": update.b.T, "lora_embedding_B": update.a.T}
    parts = {"lora_A.weight": update.a, "lora_B.weight": update.b}
    return parts if update.magnitude is None else parts | {"lora_magnitude_vector": update.magnitude}


def _settings(names: Mapping[str, str], low_rank: Mapping[str, LowRank], base: str | None) -> dict[str, Any]:
    """Return the contents of `adapter_config.json`; ranks and alphas that differ from most go into patterns."""
    ranks = {names[path]: len(update.a) for path, update in low_rank.items()}
    alphas = {names[path]: update.scale * len(update.a) for path, update in low_rank.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 8 for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": list(ranks),
        "use_dora": any(update.magnitude is not None for update in low_rank.values()),
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
