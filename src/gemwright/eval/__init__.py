"""Evaluation with lm-eval: its tasks and metrics over models that this package runs."""
