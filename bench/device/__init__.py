"""The sections of bench/accelerator.py, each of which runs in a process of its own."""
