"""The Typer application with all commands."""

from typing import Annotated

import typer

from gemwright import __version__
from gemwright.cli.card import card
from gemwright.cli.chat import chat
from gemwright.cli.compare import compare
from gemwright.cli.doctor import doctor
from gemwright.cli.eval import evaluate
from gemwright.cli.export import export
from gemwright.cli.files import convert, pull, quantize
from gemwright.cli.filter import filter_data
from gemwright.cli.generate import generate
from gemwright.cli.infill import infill
from gemwright.cli.init import init
from gemwright.cli.inspect import inspect
from gemwright.cli.memorize import memorize
from gemwright.cli.merge import merge
from gemwright.cli.models import models
from gemwright.cli.plan import plan
from gemwright.cli.release import release
from gemwright.cli.score import score
from gemwright.cli.see import see
from gemwright.cli.serve import serve
from gemwright.cli.sign import sign
from gemwright.cli.storage import du, list_models, rm
from gemwright.cli.tokenize import tokenize
from gemwright.cli.train import train
from gemwright.cli.tune import tune
from gemwright.cli.verify import verify
from gemwright.cli.watermark import detect, watermark

app = typer.Typer(
    name="gemwright",
    rich_markup_mode=None,  # plain help starts twice as fast
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gemwright {__version__}")
        raise typer.Exit


@app.callback()
def _gemwright(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run Gemma models: generate, chat, serve, tune, evaluate, convert, quantize and release."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


for command in (generate, chat, serve, see, infill, score, tokenize):
    app.command()(command)
app.command("list")(list_models)
for command in (init, train, tune):
    app.command()(command)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(memorize)
app.command("filter")(filter_data)
app.command()(export)
for command in (card, sign, release, watermark, detect):
    app.command()(command)
for command in (plan, models, pull, rm, du, inspect, verify, convert, merge, quantize, doctor):
    app.command()(command)
