"""Output: results go to standard output, messages to standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    from rich.console import Console

    from gemwright.text.tokenizer import Tokenizer

# Text of a model or a file must not control the terminal.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_status = ""


def out() -> "Console":
    """Return a console on standard output; lines written to a file or a pipe are not wrapped."""
    clear_status()
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)


def err() -> "Console":
    """Return a console on standard error."""
    clear_status()
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def printable(text: str) -> str:
    """Return the text with control characters replaced by U+FFFD."""
    return text.translate(_CONTROLS)


def status(text: str) -> None:
    """Show a line on standard error until the next output, if it is a terminal."""
    global _status
    if sys.stderr is not None and sys.stderr.isatty():
        clear_status()
        _status = printable(text)
        sys.stderr.write(_status)
        sys.stderr.flush()


def clear_status() -> None:
    """Erase the line of `status`."""
    global _status
    if _status:
        sys.stderr.write(f"\r{' ' * len(_status)}\r")
        sys.stderr.flush()
        _status = ""


def write(text: str) -> None:
    """Write text and flush; on a terminal, replace control characters."""
    clear_status()
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(record: Mapping[str, Any]) -> None:
    """Write one object on one line."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def facts(rows: Sequence[tuple[str, str]], console: "Console") -> None:
    """Print names (dimmed) and values in two columns."""
    from rich.text import Text

    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        first, *rest = printable(value).split("\n")
        console.print(Text.assemble((name.ljust(width), "dim"), first), soft_wrap=True)
        for line in rest:
            console.print(" " * width + line, soft_wrap=True)


def note(sentence: str) -> None:
    """Print a dimmed message to standard error."""
    err().print(sentence, style="dim")


def warn(sentence: str) -> None:
    """Print a warning to standard error."""
    err().print(f"gemwright: {sentence}", style="yellow")


def token_lines(
    tokenizer: "Tokenizer",
    tokens: Sequence[int],
    logprobs: Sequence[float],
    top_logprobs: Sequence[Mapping[int, float]] = (),
) -> None:
    """Print each token with its log-probability and the most likely tokens at its position."""
    for index, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        line = f"{logprob:10.4f}  {quoted(tokenizer, token)}"
        if top_logprobs and top_logprobs[index]:
            others = "  ".join(
                f"{value:.4f} {quoted(tokenizer, other)}" for other, value in top_logprobs[index].items()
            )
            line = f"{line:<32}  {others}"
        write(line + "\n")


def quoted(tokenizer: "Tokenizer", token: int) -> str:
    """Return a token's text in quotes, with control characters escaped."""
    return json.dumps(piece(tokenizer, token), ensure_ascii=False)


def piece(tokenizer: "Tokenizer", token: int) -> str:
    """Return a token's text; a control token gives its name, part of a character gives U+FFFD."""
    return tokenizer.piece_bytes(token, keep_control=True).decode("utf-8", "replace")


def size(nbytes: int) -> str:
    """Return a number of bytes as text, such as 246 MB or 1.07 GB."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.{0 if nbytes >= 1e7 else 1}f} MB"


def read_stdin(*, keep_newline: bool = False) -> str | None:
    """Return standard input, without its final newline by default, or None if it is a terminal or empty.

    Raises:
        GemwrightError: it is not UTF-8 text.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise GemwrightError(
            f"Standard input is not UTF-8 text (byte {error.start}); convert it to UTF-8 first."
        ) from error
    return (text if keep_newline else text.removesuffix("\n").removesuffix("\r")) or None


def read_file(path: Path) -> str:
    """Return the text of a file.

    Raises:
        GemwrightError: the file cannot be read or is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise GemwrightError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8 first.") from error
    except OSError as error:
        raise GemwrightError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def argument(text: str) -> str:
    """Return an argument as text; replace bytes that are not UTF-8 with U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
