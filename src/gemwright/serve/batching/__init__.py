"""Continuous batching: requests, the scheduler that runs them together, and the prefix cache."""
