"""Sections of bench/accelerator.py, each run in its own process."""
