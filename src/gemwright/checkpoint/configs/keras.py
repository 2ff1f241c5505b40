"""Read the `config.json` of a Keras preset of Gemma 1, 2 and 3.

Source: keras-team/keras-hub 0.32 `models/gemma/gemma_backbone.py`, `models/gemma3/gemma3_backbone.py`.
"""

from collections.abc import Mapping
from typing import Any

from gemwright.checkpoint.configs.reader import MAX_LAYERS, ConfigReader
from gemwright.checkpoint.configs.uniform import UniformConfig, check_config, local_layers
from gemwright.model.config import Config, Rope

CLASSES = ("GemmaBackbone", "Gemma3Backbone")


def from_keras(settings: Mapping[str, Any], where: str) -> Config:
    """Return the model that a `config.json` of Keras describes.

    Args:
        settings: Its keys.
        where: That file, for error messages.

    Raises:
        CheckpointError: The class is not supported, or a key is missing or has a value that is not allowed.
    """
    name = ConfigReader(settings, where).data.get("class_name")
    keys = ConfigReader(settings, where).mapping("config")
    if name not in CLASSES:
        raise keys.unsupported(f"the Keras class {str(name)[:80]!r}", CLASSES)
    gemma3 = name == "Gemma3Backbone"
    if keys.data.get("vision_encoder") is not None:
        raise keys.unsupported("a Keras model with a vision encoder", ("text models", "safetensors with a tower"))
    keys.choice("is_embedding_model", False)
    keys.choice("use_bidirectional_attention", False)
    post_norms = keys.boolean("use_post_ffw_norm", False)
    keys.choice("use_post_attention_norm", post_norms)
    # keras-hub itself ignores `query_head_dim_normalize`, which the 27B models need.
    depth, width = keys.integer("num_layers", most=MAX_LAYERS), keys.integer("hidden_dim")
    heads, head_dim = keys.integer("num_query_heads"), keys.integer("head_dim")
    windows = keys.boolean("use_sliding_window_attention", False)
    local = local_layers(6 if gemma3 else 2, depth) if windows else (False,) * depth
    local_scale = keys.real("local_rope_scaling_factor", 1.0)
    global_scale = keys.real("global_rope_scaling_factor", 1.0)
    model = UniformConfig(
        width=width,
        vocab=keys.integer("vocabulary_size"),
        max_length=8192 if not gemma3 else 32_768 if global_scale == 1 else 131_072,  # not in the file
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads"),
        head_dim=head_dim,
        query_scalar=head_dim if keys.boolean("query_head_dim_normalize", True) else width // heads,
        hidden=keys.integer("intermediate_dim") // (1 if gemma3 else 2),
        local=local,
        window=keys.integer("sliding_window_size", 4096) if windows else None,
        local_rope=Rope(scale=local_scale) if gemma3 else Rope(),
        global_rope=Rope(1_000_000.0, global_scale) if gemma3 else Rope(),
        soft_cap=keys.optional_real("attention_logit_soft_cap"),
        final_soft_cap=keys.optional_real("final_logit_soft_cap"),
        qk_norm=gemma3 and keys.boolean("use_query_key_norm", True),
        post_norms=post_norms,
        tied=True,
        norm_eps=keys.real("layer_norm_epsilon", 1e-6),
    )
    return check_config(model, where)
