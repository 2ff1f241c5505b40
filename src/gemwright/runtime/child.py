"""A function in a process of its own, for libraries that may end the process, print to its streams or keep memory."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError

Report = Callable[[str], None]
"""Called with a line about what is done."""


def run_in_child(task: Callable[..., Any], *args: Any, log: Path, report: Report) -> Any:
    """Run `task(*args, report)` in a new process, and return what it returns.

    Args:
        task: A function of a module.
        args: Its arguments, which are pickled.
        log: File for what the process prints.
        report: Called here with each line that the task reports.

    Raises:
        GemwrightError: The task raises it, or the process is killed or ends itself.
        RuntimeError: The task raises another exception.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, log, task, args), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            kind, value = receiver.recv()
            if kind == "result":
                return value
            if kind == "error":
                raise value
            report(value)
    except EOFError as error:
        process.join()
        raise GemwrightError(
            f"{task.__module__} was ended by signal or status {process.exitcode}, perhaps for want of memory; "
            f"the last line that it printed is: {_last_line(log)}"
        ) from error
    finally:
        process.terminate()
        process.join()


def follow_parent() -> None:
    """Leave Ctrl-C to the parent process, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


def _work(sender: Connection, log: Path, task: Callable[..., Any], args: tuple[Any, ...]) -> None:
    follow_parent()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)

    def report(line: str) -> None:
        sender.send(("report", line))

    try:
        sender.send(("result", task(*args, report)))
    except GemwrightError as error:
        sender.send(("error", error))
    except Exception:
        sender.send(("error", RuntimeError(traceback.format_exc())))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "(nothing)"
