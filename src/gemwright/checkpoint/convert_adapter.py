"""Convert a LoRA adapter from a PEFT folder to GGUF, or back.

Sources: huggingface/peft `src/peft/tuners/lora/config.py` (0.21); ggml-org/llama.cpp `convert_lora_to_gguf.py`.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
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
from gemwright.checkpoint.names.huggingface import SCORE
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


def write_peft(
    target: Path,
    updates: Updates,
    config: Config,
    base: str | None,
    documents: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    score: NDArray[np.float32] | None = None,
) -> None:
    """Write updates as a PEFT folder, completely or not at all.

    Args:
        target: The folder to make.
        updates: The updates.
        config: The model they are for.
        base: The name or path of the model.
        documents: Further JSON files by name, such as those of a tokenizer.
        score: The head [1, D] of a reward model, whose adapter the folder is then.

    Raises:
        CheckpointError: The folder exists or cannot be written.
    """
    prefix = "model.language_model." if config.vision else "model."  # the names of transformers 5
    modules = {path: module.replace("model.", prefix, 1) for path, module in _modules("peft", config).items()}
    arrays: dict[str, NDArray[np.float32]] = {}
    for path, update in updates.low_rank.items():
        arrays |= {f"base_model.model.{modules[path]}.{part}": values for part, values in _parts(path, update).items()}
    arrays |= {f"base_model.model.{modules[path]}.weight": values for path, values in updates.replaced.items()}
    settings = _settings(modules, updates, base)
    if score is not None:
        arrays[f"base_model.model.{SCORE}"] = score
        settings |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    tensors = [
        SafetensorsTensor(name, values.shape, np.dtype(np.float32), lambda values=values: np.ascontiguousarray(values))
        for name, values in arrays.items()
    ]
    documents = {ADAPTER_CONFIG: settings, **documents}
    with create_folder(target, sum(tensor.nbytes for tensor in tensors)) as temporary:
        write_shards(temporary, tensors, sys.maxsize)
        (temporary / SINGLE).rename(temporary / WEIGHTS)
        for name, document in documents.items():
            (temporary / name).write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")


def _parts(path: str, update: LowRank) -> dict[str, NDArray[np.float32]]:
    if path == "embed":
        return {"lora_embedding_A": update.b.T, "lora_embedding_B": update.a.T}
    parts = {"lora_A.weight": update.a, "lora_B.weight": update.b}
    return parts if update.magnitude is None else parts | {"lora_magnitude_vector": update.magnitude}


def _settings(modules: Mapping[str, str], updates: Updates, base: str | None) -> dict[str, Any]:
    """Return the contents of `adapter_config.json`; ranks and alphas that differ from most go into patterns."""
    low_rank = updates.low_rank
    ranks = {modules[path]: len(update.a) for path, update in low_rank.items()}
    alphas = {modules[path]: update.scale * len(update.a) for path, update in low_rank.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 8 for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "target_modules": _targets(list(ranks), modules.values()),
        "modules_to_save": [_last(modules[path]) for path in updates.replaced] or None,
        "use_dora": any(update.magnitude is not None for update in low_rank.values()),
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _targets(targets: Sequence[str], modules: Iterable[str]) -> list[str] | str:
    """Return how PEFT finds the targets among the modules of a model, as short as possible.

    That is the last parts of their names; for the language model of a multimodal one, whose tower has modules of the
    same names, a regular expression; or else all names.
    """
    last = list(dict.fromkeys(map(_last, targets)))
    named = {module for module in modules if _last(module) in last}
    if named == set(targets):
        return last
    if {module for module in named if ".language_model." in module} == set(targets):
        return rf".*\.language_model\..*\.({'|'.join(last)})"
    return list(targets)


def _pattern(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Return the values that are not the usual one by module, or by the last part of a name if all of it agree."""
    found: dict[str, set[float]] = {}
    for module, value in values.items():
        found.setdefault(_last(module), set()).add(value)
    others = {module: value for module, value in values.items() if value != usual}
    return {_last(module) if len(found[_last(module)]) == 1 else module: value for module, value in others.items()}
