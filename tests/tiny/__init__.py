"""Makers of tiny models with random weights, one module for each format or kind of model."""
