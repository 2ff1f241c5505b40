"""Read, write and convert checkpoints of every format."""
