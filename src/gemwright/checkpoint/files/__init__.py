"""Files of named tensors, which know no Gemma."""
