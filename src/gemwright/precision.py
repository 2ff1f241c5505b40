"""The precision of a loaded model: the name of a choice of dtypes for weights, activations and the KV cache."""

from typing import Any, Literal, TypeAlias, get_args

from gemwright.errors import GemwrightError

Precision: TypeAlias = Literal["stored", "float32", "bfloat16"]
"""`stored` keeps matrices in their stored format (CPU kernels), with float32 activations and a bfloat16 cache."""


def parse_precision(given: Any) -> Precision:
    """Return the precision of a name or a dtype of numpy or JAX.

    Raises:
        GemwrightError: it is not supported; the message says why.
    """
    name = given if isinstance(given, str) else getattr(given, "name", getattr(given, "__name__", repr(given)))
    if name in get_args(Precision):
        return name
    if name in ("float16", "half", "fp16"):
        raise GemwrightError(
            "float16 is not supported: activations of Gemma exceed its range (65504); use bfloat16 or float32."
        )
    raise GemwrightError(f"dtype {name!r:.40} is not supported; use one of {', '.join(get_args(Precision))}.")


def activation_dtype(precision: Precision) -> Literal["float32", "bfloat16"]:
    """Return the dtype of activations and of weights that are not kept in their stored format."""
    return "float32" if precision == "stored" else precision


def cache_dtype(precision: Precision) -> Literal["float32", "bfloat16"]:
    """Return the dtype of keys, values and convolution inputs of earlier tokens.

    At a long context decoding reads more of the cache than of the weights, so the cache of stored weights is bfloat16.
    """
    return "bfloat16" if precision == "stored" else precision
