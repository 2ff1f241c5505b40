"""Structured output: grammars that a text must match, and calls of functions."""
