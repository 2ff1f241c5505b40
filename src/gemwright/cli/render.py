"""How things look. Standard output is for results, standard error for news."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    from rich.console import Console

    from gemwright.text.tokenizer import Tokenizer

# A terminal obeys control characters, and neither a model nor a file may command it.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def out() -> "Console":
    """Standard output. Lines that go to a file or a pipe are never wrapped."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)


def err() -> "Console":
    """Standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def printable(text: str) -> str:
    """Text without control characters."""
    return text.translate(_CONTROLS)


def write(text: str) -> None:
    """Write text of a model at once, as it is; on a terminal without control characters."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(record: Mapping[str, Any]) -> None:
    """Write one object on one line."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def facts(rows: Sequence[tuple[str, str]], console: "Console") -> None:
    """Print names, dimmed, and what stands under them, in two columns."""
    from rich.text import Text

    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        first, *rest = printable(value).split("\n")
        console.print(Text.assemble((name.ljust(width), "dim"), first), soft_wrap=True)
        for line in rest:
            console.print(" " * width + line, soft_wrap=True)


def news(sentence: str) -> None:
    """One dim line on standard error."""
    err().print(sentence, style="dim")


def warn(sentence: str) -> None:
    """One line on standard error that should be read."""
    err().print(f"gemwright: {sentence}", style="yellow")


def token_lines(
    tokenizer: "Tokenizer",
    tokens: Sequence[int],
    logprobs: Sequence[float],
    top_logprobs: Sequence[Mapping[int, float]] = (),
) -> None:
    """Print each token with its log-probability, and the likeliest tokens in its place."""
    for index, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        line = f"{logprob:10.4f}  {quoted(tokenizer, token)}"
        if top_logprobs and top_logprobs[index]:
            others = "  ".join(
                f"{value:.4f} {quoted(tokenizer, other)}" for other, value in top_logprobs[index].items()
            )
            line = f"{line:<32}  {others}"
        write(line + "\n")


def quoted(tokenizer: "Tokenizer", token: int) -> str:
    """A token's text in quotes, with control characters escaped."""
    return json.dumps(piece(tokenizer, token), ensure_ascii=False)


def piece(tokenizer: "Tokenizer", token: int) -> str:
    """A token's text; a control token has its name, and a part of a character is U+FFFD."""
    return tokenizer.piece_bytes(token, keep_control=True).decode("utf-8", "replace")


def size(nbytes: int) -> str:
    """Bytes for people: 246 MB, 1.07 GB."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.{0 if nbytes >= 1e7 else 1}f} MB"


def read_stdin() -> str | None:
    """All of standard input without the newline that ends it; None where a person sits there or nothing comes.

    Raises:
        GemwrightError: it is not text.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise GemwrightError(f"Standard input is not UTF-8 text (byte {error.start}); convert it first.") from error
    return text.removesuffix("\n") or None


def read_file(path: Path) -> str:
    """The text of a file, as it is.

    Raises:
        GemwrightError: it cannot be read, or is not text.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise GemwrightError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from error
    except OSError as error:
        raise GemwrightError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def argument(text: str) -> str:
    """An argument as text: bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
