"""Tests. Import makers of tiny models from `tests.tiny` and shared helpers from `tests.helpers`."""
