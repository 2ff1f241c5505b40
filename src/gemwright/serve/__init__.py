"""Serve models over HTTP: a scheduler that batches requests continuously, and the APIs that clients speak."""
