"""The axis legend. Every shape in the code base is written with these letters.

    B  batch rows            T  query positions        S  key positions
    D  model width           N  query heads            K  key/value heads
    H  head width            F  hidden width of the MLP (one branch)
    V  vocabulary rows       G  query heads per key/value head (N / K)
    R  recurrent width       C  inputs that a convolution keeps
    E  width of the tower    P  pixels along a picture's side

Weight matrices are stored with the contracted axes last, as they lie on disk in the Hugging Face and GGUF
formats: rows are outputs. A quantised block then runs along a row.
"""

from jax import Array
from jaxtyping import Bool, Float, Int, UInt

__all__ = ["Array", "Bool", "Float", "Int", "UInt"]
