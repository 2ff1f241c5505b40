"""Wrong options and arguments, explained in one sentence."""

import difflib
import re
from typing import Any

import typer

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # its module differs between releases of Typer


def explain(error: Any) -> str:
    """Return one sentence about a usage error of Typer: the problem, and the likely option or the command's help."""
    text = " ".join(error.format_message().replace("Value error, ", "").split())
    first, *others = re.split(r"\. ", re.sub(r" \(Possible options: .*\)$", "", text).rstrip("."))
    sentence = "; ".join([first, *(other[0].lower() + other[1:] for other in others)])
    options = {name.lstrip("-"): name for name in getattr(error, "possibilities", None) or ()}
    if options and (nearest := difflib.get_close_matches(error.option_name.lstrip("-"), options, n=1)):
        return f"{sentence}; did you mean {options[nearest[0]]}?"
    if sentence.endswith("?"):
        return sentence
    command = error.ctx.command_path if error.ctx else "gemwright"
    return f"{sentence}; see `{command} --help`."
