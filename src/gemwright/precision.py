"""The precision of a loaded model, which names its dtypes of weights, activations and KV cache."""

from typing import Any, Literal, TypeAlias, get_args

from gemwright.errors import GemwrightError

Precision: TypeAlias = Literal["stored", "float32", "bfloat16"]
"""`stored` keeps matrices in their stored format (CPU kernels), with float32 activations and a bfloat16 cache."""

_FLOAT16 = "float16 is not supported: Gemma's activations exceed its range (65504); use bfloat16 or float32."
_REFUSED = {
    **dict.fromkeys(("float16", "fp16", "f16", "half"), _FLOAT16),
    "int8": "int8 is not a precision of activations; use stored, which keeps quantized weights in their stored format.",
}


def parse_precision(given: Any) -> Precision:
    """Return the precision of a name or of a dtype of NumPy, JAX or PyTorch.

    Raises:
        GemwrightError: It is not supported.
    """
    name = given if isinstance(given, str) else getattr(given, "name", getattr(given, "__name__", repr(given)))
    name = str(name).removeprefix("torch.")
    for precision in get_args(Precision):
        if name == precision:
            return precision
    if name.lower() in _REFUSED:
        raise GemwrightError(_REFUSED[name.lower()])
    raise GemwrightError(f"dtype {name!r:.40} is not supported; use one of {', '.join(get_args(Precision))}.")


def activation_dtype(precision: Precision) -> Literal["float32", "bfloat16"]:
    """Return the dtype of activations, and of weights that are not kept in their stored format."""
    return "float32" if precision == "stored" else precision


def cache_dtype(precision: Precision) -> Literal["float32", "bfloat16"]:
    """Return the dtype of the KV cache and of the convolution inputs of recurrent layers.

    At a long context decoding reads more of the cache than of the weights, so `stored` has a bfloat16 cache.
    """
    return "bfloat16" if precision == "stored" else precision
