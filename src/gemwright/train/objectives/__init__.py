"""What a run minimizes: an objective reads its data, says what is trained, and computes the loss of a batch."""
