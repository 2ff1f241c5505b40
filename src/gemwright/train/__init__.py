"""Training: tune a model on documents of tokens."""
