"""The command line. JAX is imported only when a command needs it, so that help is fast."""

import io
import os
import signal
import sys
from typing import NoReturn

from gemwright.cli import render
from gemwright.errors import GemwrightError, PolicyError
from gemwright.runtime import cache_dir

REFUSED = 3
"""Exit code after a text that the shield refuses."""


def main() -> None:
    """Run `gemwright` with the process's arguments; does not return.

    Exit codes: 0 on success; 1 after a broken pipe; 2 after an error that the user can fix, with one sentence on
    standard error; 3 after a text that the shield refuses, with one sentence, too; 130 after Ctrl-C; 143 after SIGTERM.
    """
    # Leave `with` blocks, which remove unfinished files.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if sys.stdout is None:
        _fail("Standard output is closed; redirect it to a file or to /dev/null.")
    for stream in (sys.stdout, sys.stderr):
        # Print a question mark for a character that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        cache_dir.ensure_home()
        sys.exit(_run())
    except PolicyError as error:
        _fail(str(error), REFUSED)
    except GemwrightError as error:
        _fail(str(error))
    except BrokenPipeError:
        _abandon_stdout()
        sys.exit(1)
    except OSError as error:
        _abandon_stdout()
        name = error.filename or "The output"
        _fail(f"{name} cannot be read or written ({error.strerror or error}); check the path and the free space.")
    except KeyboardInterrupt:
        render.clear_status()
        sys.exit(130)


def _run() -> int:
    """Run the command and return its exit code.

    Raises:
        GemwrightError: An option or argument is wrong, or as the command.
    """
    import typer

    from gemwright.cli.app import app
    from gemwright.cli.usage import UsageError, explain

    try:
        return app(prog_name="gemwright", standalone_mode=False) or 0
    except typer.Abort:  # Ctrl-C or Ctrl-D at a question
        return 130
    except UsageError as error:
        raise GemwrightError(explain(error)) from error
    finally:
        render.clear_status()
        print(end="", flush=True)  # noqa: T201


def _fail(sentence: str, code: int = 2) -> None:
    if sys.stderr is not None:
        print(f"gemwright: {render.printable(sentence)}", file=sys.stderr)  # noqa: T201
    if (distributed := sys.modules.get("gemwright.runtime.distributed")) is not None and distributed.joined:
        _abandon_others(code)
    sys.exit(code)


def _abandon_others(code: int) -> NoReturn:
    """End without JAX's wait for the other processes, some of which may be gone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def _abandon_stdout() -> None:
    """Redirect standard output to /dev/null, so that flushing its buffer at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
