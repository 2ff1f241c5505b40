"""Complete code in any editor: write ??? at a gap, save the file, and the gap is filled in.

gemwright serve --model codegemma-2b
python examples/apps/complete_code.py solve.py --url http://127.0.0.1:8000/v1

The server fills the gap with POST /v1/completions, whose `suffix` is the code after it, as editors do; this needs
`pip install openai`. Without --url the program loads the model itself. Ctrl-C ends it; with --once it ends after the
first gap. If the file changes while a completion is computed, the completion is dropped.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gemwright.errors import GemwrightError

Complete = Callable[[str, str], str]
"""Returns the code between two pieces of code."""
INTERVAL = 0.2
"""Time between two looks at the file, in seconds."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Fill in the gaps that an editor leaves in a file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", help="base URL of a server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="codegemma-2b", help="path, name or hub id, or the server's name of it")
    parser.add_argument("--marker", default="???", help="text that marks a gap")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--once", action="store_true", help="end after one gap")
    options = parser.parse_args()
    if not options.marker:
        parser.error("--marker is empty; pass a text that the code does not contain.")
    connect = from_server if options.url else in_process
    try:
        complete = connect(options.model, options.max_tokens, options.url)
        watch(options.file.resolve(), options.marker, complete, once=options.once)
    except KeyboardInterrupt:
        pass
    except (GemwrightError, OSError, UnicodeDecodeError) as error:
        parser.exit(2, f"{error}\n")


def from_server(model: str, max_tokens: int, url: str) -> Complete:
    """Return a function that asks a server, which has the key OPENAI_API_KEY if it needs one."""
    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))

    def complete(before: str, after: str) -> str:
        try:
            answer = client.completions.create(
                model=model, prompt=before, suffix=after, max_tokens=max_tokens, temperature=0.0
            )
        except OpenAIError as error:
            raise GemwrightError(f"The server at {url} did not complete the code: {error}") from None
        return answer.choices[0].text

    return complete


def in_process(model: str, max_tokens: int, _: None) -> Complete:
    """Return a function that runs a model here."""
    import gemwright

    loaded = gemwright.load(model)
    return lambda before, after: loaded.infill(before, after, max_tokens=max_tokens).text


def watch(file: Path, marker: str, complete: Complete, *, once: bool = False) -> None:
    """Fill in the first gap of a file whenever there is one."""
    seen = None
    sys.stderr.write(f"Watching {file} for {marker} (Ctrl-C ends).\n")
    while True:
        try:
            changed = file.stat().st_mtime_ns
            if changed != seen and (middle := fill(file, marker, complete)) is None:
                seen = changed
            elif changed != seen:
                sys.stdout.write(f"{middle}\n")
                sys.stdout.flush()
                if once:
                    return
        except FileNotFoundError:  # for a moment, while an editor replaces it
            if seen is None:
                raise
        time.sleep(INTERVAL)


def fill(file: Path, marker: str, complete: Complete) -> str | None:
    """Fill in the first gap of a file, and return the code; None if there is no gap."""
    code = read(file)
    before, gap, after = code.partition(marker)
    if not gap:
        return None
    middle = complete(before, after).replace(marker, "")  # or it would be a gap again
    if read(file) == code:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=file.parent, delete=False) as new:
            new.write(before + middle + after)
        shutil.copymode(file, new.name)
        Path(new.name).replace(file)
    return middle


def read(file: Path) -> str:
    """Read a file without changing its line ends."""
    with file.open(encoding="utf-8", newline="") as opened:
        return opened.read()


if __name__ == "__main__":
    main()
