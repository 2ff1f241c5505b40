"""Write cli.md, the reference of the command line, from the application's own help."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from typer import Context
from typer.main import get_command

from gemwright.cli.app import app

HEAD = """\
# The command line

Every command and option, written by [cli.py](cli.py) from the help that `gemwright COMMAND --help` prints.

Results are printed to standard output and messages to standard error. Exit codes: 0 on success, 1 after a broken pipe,
2 after an error that you can fix, with one sentence on standard error, 3 after a text that `--shield` refuses,
and 130 after Ctrl-C. `--install-completion` installs completion of commands, options and model names for bash, zsh,
fish and PowerShell.

`generate` prints the prompt before the text on a terminal only; `--echo` and `--no-echo` choose. `--samples N` gives N
texts for each prompt; each uses the seed after that of the one before, and `--json` reports it.

In `chat` on a terminal, `/help` lists the commands; `/save`, `/load` and `--session` use JSON files with a list of
messages (`role`, `content` and the paths of `images`). If standard input is not a terminal, each line is a message.

![A session of gemwright chat](images/chat.png)

`see --draw FILE` draws the boxes and masks of PaliGemma's answer:

![Two objects with their boxes and masks](images/boxes.png)

*Screenshots by [screenshots.py](screenshots.py): a session with the packaged base model, and a painted scene with the
boxes and masks of its objects.*
"""


def sections() -> Iterator[tuple[str, str]]:
    """Yield the name and the Markdown section of each command."""
    group = get_command(app)
    context = Context(group, info_name="gemwright")
    for name, command in group.commands.items():
        inner = Context(command, info_name=name, parent=context)
        records = filter(None, (parameter.get_help_record(inner) for parameter in command.params))
        arguments = " ".join(command.collect_usage_pieces(inner))
        table = "\n".join(["| argument or option | meaning |", "|---|---|", *itertools.starmap(_row, records)])
        yield name, f"## `gemwright {name} {arguments}`\n\n{command.help}\n\n{table}\n"


def _row(names: str, text: str) -> str:
    names = re.sub(r"(?<=[A-Z]) <.*>$", "", names)  # the type of an argument
    cells = (cell.replace("|", "\\|") for cell in (f"`{names}`", re.sub(r"\s+", " ", text)))
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *(section for _, section in sections())])


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
