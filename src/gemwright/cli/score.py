"""`gemwright score`: log-likelihood and perplexity of a text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError


def score(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="Text to score; - reads standard input. Default: --file or standard input."
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="File to score; - for standard input.")] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Text before TEXT that is not scored.")] = "",
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Image before the prompt; may be repeated.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Score a text longer than the context in windows that advance by N tokens."
        ),
    ] = None,
    reward: Annotated[
        bool, typer.Option("--reward", help="Print the score of a reward model instead, for TEXT after --prompt.")
    ] = False,
    model: o.ModelOption = "gemma-3-270m",
    adapter: o.AdapterOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    threads: o.ThreadsOption = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Print log-probabilities, or the score of a reward model."""
    content = read_text(text, file)
    if reward:
        if image or adapter or stride or variant:
            raise GemwrightError("--reward takes no --image, --adapter, --stride or --variant; leave them out.")
        _print_reward(model, content, render.argument(prompt), dtype, as_json)
        return
    from gemwright.cli.loading import load

    loaded = load(model, dtype=dtype, variant=variant, verbose=verbose, adapters=o.adapters(adapter))
    options: dict[str, Any] = {} if stride is None else {"stride": stride}
    result = loaded.model.score(content, render.argument(prompt), image or (), **options)
    tokenizer, tokens = loaded.model.tokenizer, result.tokens[1:]
    total = sum(result.logprobs)
    if as_json:
        render.write_json(
            {
                "text": content,
                "tokens": result.tokens,
                "pieces": [render.piece(tokenizer, token) for token in result.tokens],
                "logprobs": [o.finite(logprob) for logprob in result.logprobs],
                "log_likelihood": o.finite(total),
                "perplexity": o.finite(result.perplexity),
                "model": loaded.name,
                "dtype": loaded.dtype,
            }
        )
        return
    render.token_lines(tokenizer, tokens, result.logprobs)
    rows = [
        ("tokens", str(len(tokens))),
        ("log-likelihood", f"{total:.4f}"),
        ("perplexity", f"{result.perplexity:.4f}"),
    ]
    render.write("\n")
    render.facts(rows, render.out())


def _print_reward(model: str, text: str, prompt: str, dtype: str | None, as_json: bool) -> None:
    """Print the score of a reward model."""
    render.status("Loading the model ...")
    import_jax()
    from gemwright.train.objectives.reward_model import load_reward

    record = {"prompt": prompt, "completion": text} if prompt else {"text": text}
    (found,) = load_reward(model, dtype).score([record])
    if as_json:
        render.write_json({"prompt": prompt, "text": text, "reward": o.finite(found), "model": model})
    else:
        render.facts([("reward", f"{found:.4f}")], render.out())


def read_text(text: str | None, file: Path | None) -> str:
    """Return the text of an argument, of a file or of standard input.

    Raises:
        GemwrightError: There is none or more than one, or it is empty or cannot be read.
    """
    if text is not None and file is not None:
        raise GemwrightError("TEXT and --file cannot be combined; pass one of them.")
    if text is not None and text != "-":
        content = render.argument(text)
    elif file is not None and str(file) != "-":
        content = render.read_file(file)
    else:
        content = render.read_stdin()
    if content is None:
        raise o.no_text("text")
    if not content:
        raise GemwrightError("The text is empty; pass at least one character.")
    return content
