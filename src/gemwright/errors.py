"""User-fixable errors: the command line prints the one sentence of the message and exits with code 2."""

from collections.abc import Mapping
from types import MappingProxyType


class GemwrightError(ValueError):
    """An error that the user can fix; the message says what is wrong, where, and how to fix it."""


class CheckpointError(GemwrightError):
    """An error in reading or writing a checkpoint, its configuration or its tokenizer."""


class DataError(GemwrightError):
    """An error in training data; the message names the file and the line."""


class PolicyError(GemwrightError):
    """A text that a shield refuses; the message names the policy and has nothing of the text."""


class NotFiniteError(GemwrightError):
    """A model computed infinite or undefined logits."""


class RequestError(GemwrightError):
    """An HTTP request that cannot be served.

    Attributes:
        status: The HTTP status.
        code: A name of the reason for programs, such as "context_length_exceeded".
        param: The field of the request to correct, if it is one.
        retry_after: Seconds after which the request may succeed, if it may.
        numbers: The numbers in the message, by name, for the APIs that report them apart.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        retry_after: int | None = None,
        numbers: Mapping[str, int] = MappingProxyType({}),
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after
        self.numbers = numbers
