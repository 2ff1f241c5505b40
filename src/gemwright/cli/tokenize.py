"""`gemwright tokenize`: convert text to token ids and back."""

from typing import Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError


def tokenize(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text; - reads standard input, the default.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="TEXT is token ids, separated by spaces or commas; print their text.")
    ] = False,
    model: o.ModelOption = "gemma-3-270m",
    as_json: o.JsonOption = False,
) -> None:
    """Print the token ids of a text, or the text of token ids.

    As `generate` does, it puts BOS before the text.
    """
    content = render.read_stdin() if text is None or text == "-" else render.argument(text)
    if content is None:
        raise o.no_text("text")
    import_jax()
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.cli.loading import find
    from gemwright.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(open_checkpoint(find(model)).vocabulary())
    ids = _parse(content, tokenizer.size) if decode else tokenizer.with_bos(tokenizer.encode(content))
    if as_json:
        pieces = [render.piece(tokenizer, token) for token in ids]
        render.write_json({"text": tokenizer.decode(ids) if decode else content, "tokens": ids, "pieces": pieces})
    elif decode:
        render.write(tokenizer.decode(ids) + "\n")
    else:
        for token in ids:
            render.write(f"{token:>7}  {render.quoted(tokenizer, token)}\n")


def _parse(text: str, size: int) -> list[int]:
    """Return the ids in a text.

    Raises:
        GemwrightError: A word is not an id of the vocabulary.
    """
    ids: list[int] = []
    for word in text.replace(",", " ").strip("[] \n").split():
        if not (word.isdecimal() and len(word) < 10 and int(word) < size):
            raise GemwrightError(f"{word!r:.80} is not a token id; use numbers from 0 to {size - 1:,}.")
        ids.append(int(word))
    return ids
