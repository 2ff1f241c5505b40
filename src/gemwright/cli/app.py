"""The Typer application with all commands."""

from typing import Annotated

import typer

from gemwright import __version__
from gemwright.cli.chat import chat
from gemwright.cli.doctor import doctor
from gemwright.cli.files import convert, pull, quantize
from gemwright.cli.generate import generate
from gemwright.cli.infill import infill
from gemwright.cli.inspect import inspect
from gemwright.cli.models import models
from gemwright.cli.score import score
from gemwright.cli.see import see

app = typer.Typer(
    name="gemwright",
    rich_markup_mode=None,  # plain help starts twice as fast
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gemwright {__version__}")
        raise typer.Exit


@app.callback()
def _gemwright(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run Gemma models: generate, chat, describe images, score, convert and quantise."""


for command in (generate, chat, see, infill, score, models, inspect, convert, quantize, pull, doctor):
    app.command()(command)
