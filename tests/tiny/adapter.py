"""A tiny LoRA adapter with random factors as a PEFT folder."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gemwright.checkpoint.updates import map_modules
from gemwright.model.config import Config

RANK = 2


def write_tiny_adapter(folder: Path, config: Config, base: str, seed: int = 0) -> Path:
    """Write an adapter of all queries of a model whose name is `base`."""
    random, tensors = np.random.default_rng(seed), dict[str, np.ndarray]()
    for module, (path, tensor) in map_modules("peft", config).items():
        if path.endswith("mixer.q"):
            outputs, inputs = tensor.shape
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                values = random.normal(0, 0.1, shape).astype(np.float32)
                tensors[f"base_model.model.{module}.lora_{part}.weight"] = values
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
