"""Tiny transformers models with random weights, and the folders that they are saved to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
    VaultGemmaConfig,
)

from tests.tiny.vocabulary import embedding_size, make_vocabulary

TEXT_KINDS = ("gemma", "gemma, full heads", "gemma2", "vaultgemma", "gemma3_text")
VISION_KINDS = ("paligemma", "paligemma2", "gemma3")
TEXT = "The man and the thing, in QED, x\u00e9y  zz"
IMAGE_SIZE, PATCH_SIZE = 28, 7
"""Side of an image and of a patch in pixels: four by four patches."""
VISION_LAYERS, VISION_HEADS = 2, 3

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}
_TEXT_ONLY: dict[str, Any] = {
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}
_GEMMA2: dict[str, Any] = {"query_pre_attn_scalar": 32, "sliding_window": 8}
_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": VISION_LAYERS,
    "num_attention_heads": VISION_HEADS,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "vision_use_head": False,
}


def _make_config(kind: str, vision_sizes: dict[str, int]) -> PreTrainedConfig:
    text, vision = _TEXT | {"vocab_size": embedding_size(kind)}, _VISION | vision_sizes
    match kind:
        case "gemma":
            return GemmaConfig(**text, **_TEXT_ONLY)
        case "gemma, full heads":
            return GemmaConfig(**text | {"num_key_value_heads": 2}, **_TEXT_ONLY)
        case "gemma2":
            return Gemma2Config(**text, **_TEXT_ONLY, **_GEMMA2)
        case "vaultgemma":
            return VaultGemmaConfig(**text, **_TEXT_ONLY, **_GEMMA2)
        case "gemma3_text":
            return Gemma3TextConfig(**text, **_TEXT_ONLY, **_GEMMA2)
        case "recurrent_gemma":
            sizes = text | {"intermediate_size": 192, "num_hidden_layers": 5, "attention_window_size": 8}
            del sizes["head_dim"], sizes["max_position_embeddings"]
            return RecurrentGemmaConfig(**sizes)
        case "gemma3":
            text |= {"model_type": "gemma3_text", **_GEMMA2}
            return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        case "paligemma" | "paligemma2":
            text |= {"model_type": "gemma"} if kind == "paligemma" else {"model_type": "gemma2", **_GEMMA2}
            config = PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=64, hidden_size=64)
            config.image_token_index = embedding_size(kind)
            return config
        case _:
            raise ValueError(kind)


Distribution = Callable[[str], tuple[float, float] | None]
"""Mean and standard deviation of a parameter by its name, or None to keep the initial values."""


def make_random_model(config: PreTrainedConfig, distribution: Distribution) -> PreTrainedModel:
    """Return a float32 model with normally distributed weights, the same at every call."""
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (moments := distribution(name)) is not None:
                parameter.normal_(*moments)
    return model.eval()


def make_model(kind: str, dtype: torch.dtype = torch.float32, **vision_sizes: int) -> PreTrainedModel:
    """Return a model of `kind` with weights so large that each of them matters.

    The norm gains of text models are between -0.5 and 1. `vision_sizes` replace entries of the vision config.
    """
    large = "norm.weight" if kind in TEXT_KINDS else ()
    model = make_random_model(
        _make_config(kind, vision_sizes), lambda name: (0.0, 0.3 if name.endswith(large) else 0.15)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(large):
                parameter.clamp_(-0.5, 1.0)
    return model.to(dtype)


def write_model(
    folder: Path,
    kind: str = "gemma3_text",
    dtype: torch.dtype = torch.float32,
    *,
    vision_sizes: dict[str, int] | None = None,
    **save: Any,
) -> Path:
    """Save the model of `kind` with its tokenizer as transformers does; `save` goes to `save_pretrained`."""
    make_model(kind, dtype, **vision_sizes or {}).save_pretrained(folder, **save)
    (folder / "tokenizer.model").write_bytes(make_vocabulary(kind).sentencepiece_model())
    return folder
