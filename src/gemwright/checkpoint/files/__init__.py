"""File formats: named tensors and settings, independent of Gemma."""
