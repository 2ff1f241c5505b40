"""Filters of training data (the command `gemwright filter`)."""
