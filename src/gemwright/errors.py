"""User-fixable errors: the command line prints the one sentence of the message and exits with code 2."""


class GemwrightError(ValueError):
    """An error that the user can fix; the message says what is wrong, where, and how to fix it."""


class CheckpointError(GemwrightError):
    """An error in reading or writing a checkpoint, its configuration or its tokenizer."""


class DataError(GemwrightError):
    """An error in training data; the message names the file and the line."""


class NotFiniteError(GemwrightError):
    """A model computed infinite or undefined logits."""
