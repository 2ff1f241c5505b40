"""Checkpoints: every format in and out."""
