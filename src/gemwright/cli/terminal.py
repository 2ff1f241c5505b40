"""Read messages of one or several lines from a terminal."""

import select
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

QUOTES = '"""'
"""Begins and ends a message of several lines, as in Ollama."""
PASTE_WAIT = 0.02
"""Seconds to wait for the next line of a paste, for terminals and editors without bracketed paste."""


class MessageReader:
    """Reads messages with line editing and history; lines that are pasted together are one message.

    Args:
        is_command: Return whether a line is a command, which ends with the line.
    """

    def __init__(self, is_command: Callable[[str], bool]):
        self._is_command = is_command
        self._ended = False
        with suppress(ImportError):  # not on every system; input() then edits as the terminal does
            readline = import_module("readline")  # adds line editing and history to input()
            # Python turns it off, and libedit ignores the line.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self, prompt: str) -> str:
        """Return the next message, without the quotes around several lines.

        Raises:
            EOFError: The input has ended.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._ended:
            raise EOFError
        text = input(prompt)
        if text.lstrip().startswith(QUOTES):
            return self._read_quoted(text.lstrip().removeprefix(QUOTES))
        while not self._is_command(text) and _is_pending():
            text += f"\n{self._continue('')}"
        return text.replace("\r\n", "\n").removesuffix("\n")

    def _read_quoted(self, text: str) -> str:
        while not (text.rstrip().endswith(QUOTES) or self._ended):
            text += f"\n{self._continue('... ')}"
        return text.rstrip().removesuffix(QUOTES)

    def _continue(self, prompt: str) -> str:
        try:
            return input(prompt)
        except EOFError:  # ends the message; the next call raises
            self._ended = True
            return ""


def _is_pending() -> bool:
    """Return whether more input arrives at once, as it does if several lines are pasted."""
    try:
        return bool(select.select([sys.stdin], [], [], PASTE_WAIT)[0])
    except (OSError, ValueError):  # standard input is no terminal of this system
        return False
