"""Verification: a checkpoint beside its published definition, or what was written beside its source."""
