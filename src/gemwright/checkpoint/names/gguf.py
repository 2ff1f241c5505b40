"""Tensor names of GGUF files. Source: ggml-org/llama.cpp `conversion/gemma.py`."""

from gemwright import tree
from gemwright.checkpoint.names.mapping import TensorMapping, matrix_shape, split
from gemwright.model.config import Config
from gemwright.model.params import ParamSpec, param_specs

LAYER = {
    "mixer_norm": "attn_norm",
    "mixer.q": "attn_q",
    "mixer.k": "attn_k",
    "mixer.v": "attn_v",
    "mixer.o": "attn_output",
    "mixer.q_norm": "attn_q_norm",
    "mixer.k_norm": "attn_k_norm",
    "mixer_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}
MODEL = {
    "embed": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
}


def map_gguf(config: Config) -> dict[str, TensorMapping]:
    """Map the path of each weight to its tensor in a GGUF file, for models that `to_gguf` can describe."""

    def locate(path: str, param: ParamSpec) -> TensorMapping:
        layer, leaf = split(path)
        name = MODEL[leaf] if layer is None else f"blk.{layer}.{LAYER[leaf]}"
        offset = 1.0 if path.endswith("norm") else 0.0
        shape = matrix_shape(path, param)
        return TensorMapping(f"{name}.weight", shape, offset=offset, extra_rows=path in ("embed", "head"))

    return {path: locate(path, param) for path, param in tree.flatten(param_specs(config)).items()}
