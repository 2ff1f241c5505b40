"""Languages of the programs that models write: how each is run, in the sandbox."""

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gemwright.errors import GemwrightError
from gemwright.eval import sandbox
from gemwright.eval.sandbox import PYTHON, Limits, Outcome


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
        name: Its name.
        tools: Programs that it needs.
        file: Name of the file of a program.
        command: Compiles and runs that file.
        before: Code before a program.
        finish: Code after a program that prints `{}`, without which an early exit would count as the end.
        limits: What a program may use.
    """

    name: str
    tools: tuple[str, ...]
    file: str
    command: Sequence[str]
    before: str = ""
    finish: str = ""
    limits: Limits = field(default_factory=Limits)

    def find_missing_tools(self) -> list[str]:
        """Return the programs that this machine lacks."""
        return [tool for tool in self.tools if shutil.which(tool) is None]

    def require(self) -> None:
        """Check that programs can be run.

        Raises:
            GemwrightError: A tool or the sandbox is missing.
        """
        if missing := self.find_missing_tools():
            raise GemwrightError(
                f"Programs in {self.name} need {' and '.join(missing)}: install it, or leave out the task."
            )
        sandbox.find_sandbox()

    def run(self, program: str, limits: Limits | None = None) -> Outcome:
        """Run a program with its tests, which fail by an exit status other than 0.

        Raises:
            GemwrightError: See `sandbox.run`.
        """
        mark = secrets.token_hex(8)
        text = f"{self.before}{program}\n{self.finish.format(mark)}\n"
        outcome = sandbox.run(self.command, {self.file: text}, limits or self.limits)
        if not self.finish or outcome.status != "passed":
            return outcome
        ended = outcome.output.rstrip().endswith(mark)
        shown = outcome.output.rstrip().removesuffix(mark)
        return Outcome("passed" if ended else "failed", shown, outcome.seconds)


_HEADERS = "algorithm cassert climits cmath cstdio cstdlib cstring iostream map set sstream string vector"
_COMPILED: Final = Limits(seconds=40, cpu_seconds=20, processes=96)
_RUN_CPP = """
g++ -std=c++17 -w -o "$TMPDIR/main" main.cpp $(grep -q openssl main.cpp && echo -lcrypto) && exec "$TMPDIR/main"
"""
_RUN_JAVA = """
export JDK_JAVA_OPTIONS="-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ActiveProcessorCount=1"
javac -J-Xmx256m -J-XX:+UseSerialGC -J-XX:TieredStopAtLevel=1 -d "$TMPDIR" Main.java && exec java -cp "$TMPDIR" Main
"""

LANGUAGES: Final = {
    "python": Language("Python", (), "main.py", (PYTHON, "-I", "main.py"), finish="print({!r})"),
    "cpp": Language(
        "C++",
        ("g++",),
        "main.cpp",
        ("sh", "-c", _RUN_CPP),
        before="".join(f"#include <{header}>\n" for header in _HEADERS.split()),
        limits=_COMPILED,
    ),
    "java": Language("Java", ("javac", "java"), "Main.java", ("sh", "-c", _RUN_JAVA), limits=_COMPILED),
    "javascript": Language(
        "JavaScript",
        ("node",),
        "main.js",
        ("node", "main.js"),
        before="console.assert = (holds) => { if (!holds) throw new Error('assertion failed'); };\n",
        finish="console.log('{}');",
    ),
}
"""Languages by name."""
