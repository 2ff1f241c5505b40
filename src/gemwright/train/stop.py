"""Ctrl-C and SIGTERM during training: the first ends the run after its step, a further Ctrl-C ends the process."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

import jax

from gemwright.runtime import distributed
from gemwright.train.folder import Note

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context in which the first Ctrl-C or SIGTERM is remembered, in the main thread.

    Attributes:
        received: Number of the signal; None if there was none.
    """

    def __init__(self, note: Note):
        self.received: int | None = None
        self._note, self._is_announced = note, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as in a job in the background of a shell
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # A further SIGTERM changes nothing: `timeout` and some supervisors send it to a process and again to its group.
        self.received = self.received or number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def announce(self) -> None:
        """Say once that a signal was received; a handler must not, as it may interrupt printing."""
        if self.received is not None and not self._is_announced:
            self._is_announced = True
            self._note("Stopping after this step; press Ctrl-C again to stop at once.")

    def share(self) -> None:
        """Take over a signal that another process has received."""
        self.received = distributed.largest(self.received or 0) or None

    def wait(self, array: jax.Array) -> None:
        """Wait for an array in Python, which handles signals meanwhile, as JAX does not."""
        pause = 1e-4
        while not array.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
            self.announce()
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def exit(self) -> NoReturn:
        """End as the signal asks for.

        Raises:
            KeyboardInterrupt: It was Ctrl-C.
            SystemExit: It was SIGTERM.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.received or 0))
