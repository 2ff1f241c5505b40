"""Results as JSON lines, written immediately, so that an interrupted run keeps its results."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """A file of results with a deadline.

    Attributes:
        path: File of JSON lines.
        deadline: Time after which nothing new is started, in seconds of `time.time`.
        common: Keys and values of every record.
    """

    path: Path
    deadline: float
    common: Record

    def extend(self, **common: Any) -> "Journal":
        """Return a journal with more keys in every record."""
        return replace(self, common=self.common | common)

    def write(self, kind: str, **values: Any) -> None:
        """Append a record to the file and print it."""
        record = {"kind": kind, **self.common, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        sys.stdout.write(" ".join(f"{key}={_short(value)}" for key, value in record.items()) + "\n")
        sys.stdout.flush()

    def read(self, kind: str) -> list[Record]:
        """Return the records of one kind."""
        if not self.path.exists():
            return []
        records = map(json.loads, self.path.read_text().splitlines())
        return [record for record in records if record["kind"] == kind]

    def has_time(self, what: str, seconds: float = 20.0) -> bool:
        """Return whether `seconds` are left; if not, record that `what` was skipped."""
        if self.deadline - time.time() >= seconds:
            return True
        self.write("skipped", what=what, why="no time left")
        return False

    @contextmanager
    def skip_if_too_large(self, what: str, *errors: type[Exception]) -> Iterator[None]:
        """Record that `what` was skipped if it raises one of `errors` for lack of device memory."""
        try:
            yield
        except errors as error:
            message = str(error)
            if not any(words in message for words in ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")):
                raise
            self.write("skipped", what=what, why="it does not fit in the device's memory", error=message[:200])


def time_calls(run: Callable[[], Any], wait: Callable[[Any], Any], *, calls: int, rounds: int = 3) -> float:
    """Return the seconds per call: the minimum of `rounds`, each of `calls` without waiting in between."""
    wait(run())
    seconds: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls - 1):
            run()
        wait(run())
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
