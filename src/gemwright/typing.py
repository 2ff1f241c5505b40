"""The legend of axis letters, used in every shape annotation.

    B  sequences of a batch  T  query positions        S  key positions, or slots of a cache
    D  model width           N  query heads            K  key/value heads
    H  head width            F  hidden width of the MLP (one branch)
    V  vocabulary size       G  query heads per key/value head (N / K)
    R  recurrent width       C  inputs that a convolution keeps, or candidate tokens
    E  vision tower width    P  pixels along a side of an image
    L  layers, or positions of a convolution's input: C + T

Weight matrices are stored with the contracted axes last, as in the Hugging Face and GGUF formats: rows are outputs,
and a quantized block is part of a row.
"""

from jax import Array
from jaxtyping import Bool, Float, Int, UInt

__all__ = ["Array", "Bool", "Float", "Int", "UInt"]
