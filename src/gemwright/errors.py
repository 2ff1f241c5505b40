"""Errors that a person can mend: the command line prints their one sentence and exits with code 2."""


class GemwrightError(ValueError):
    """Something outside the program is wrong; the message says what, where and how to mend it."""


class CheckpointError(GemwrightError):
    """A checkpoint, its configuration or its tokenizer cannot be read or written."""
