"""Text or token ids to more tokens."""
