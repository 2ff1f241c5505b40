"""The command line. Nothing here imports JAX before a command needs it, so that help comes at once."""

import io
import os
import sys

from gemwright.cli.render import printable
from gemwright.errors import GemwrightError


def main() -> None:
    """Run `gemwright` with the process's arguments; does not return.

    Exit codes: 0; 1 when the reader of a pipe goes away; 2 with one sentence on standard error when a person can
    mend what is wrong; 130 after Ctrl-C.
    """
    if sys.stdout is None:
        _fail("Standard output is closed; give it a place to go, such as /dev/null.")
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding cannot show becomes a question mark, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        from gemwright.cli.app import app

        try:
            app(prog_name="gemwright")
        finally:
            print(end="", flush=True)  # noqa: T201
    except GemwrightError as error:
        _fail(str(error))
    except BrokenPipeError:
        _abandon_stdout()
        sys.exit(1)
    except OSError as error:
        _abandon_stdout()
        place = error.filename or "The output"
        _fail(f"{place} cannot be read or written ({error.strerror or error}); check the place and its room.")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(sentence: str) -> None:
    if sys.stderr is not None:
        print(f"gemwright: {printable(sentence)}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _abandon_stdout() -> None:
    """Let what is still buffered go nowhere: the interpreter would complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
