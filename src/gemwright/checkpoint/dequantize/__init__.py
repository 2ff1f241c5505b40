"""Read the quantised Hugging Face folders of other programs, by decoding their matrices to floats."""
