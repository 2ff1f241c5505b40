"""Read the quantized Hugging Face folders of other programs, by decoding their matrices to floats."""
